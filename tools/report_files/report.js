// The slider: every run shows its newest snapshot at the chosen kimg or before.
const step = document.getElementById("step");
if (step) {
  const steps = step.dataset.steps.split(" ").map(Number);
  step.addEventListener("input", () => {
    const kimg = steps[step.valueAsNumber];
    document.getElementById("kimg").textContent = `${kimg} kimg`;
    for (const figure of document.querySelectorAll(".snapshots")) {
      const images = [...figure.querySelectorAll("img")];
      const shown = images.findLast((image) => Number(image.dataset.kimg) <= kimg) ?? images[0];
      for (const image of images) image.hidden = image !== shown;
    }
  });
}
