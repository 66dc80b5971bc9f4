// Not a module: browsers load none from the disk, and this has to say so.
if (location.protocol === "file:") {
  document.getElementById("status").textContent =
    "Browsers run no networks from the disk. In this folder, type: python -m http.server, " +
    "and open http://localhost:8000.";
}
