"""The page of networks in a real browser: its pictures, its controls, its troubles."""

from __future__ import annotations

import io
import re
import shutil
import time

import browser
import numpy as np
import pytest
import tiny
import torch
from click.testing import CliRunner
from PIL import Image

from stylegan2_fewshot.methods.bank import filters
from tools import npm, page
from training import pickles
from training.directions import sefa

HOSTILE = "<script>document.title = 'taken'</script>"
MODELS = ["mine.onnx", "mapping-0123456789ab.onnx"]  # the second is an earlier page's
CLASSES = ["a \"quoted\" cat", "<b>dog</b>", "it's"]  # fmt: skip
SIZE = 8


def network(path, *, seed, c_dim=0, z_dim=8, bank=False):
    G, D = tiny.networks(
        SIZE, c_dim, seed=seed, z_dim=z_dim, noise=0.1, channel_base=256, channel_max=16
    )
    G.mapping.w_avg.normal_()
    if bank:
        filters.install(G, size=2, layers=filters.candidates(G)[:1])
    pickles.save(path, G=G, D=D, G_ema=G)
    return G.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two networks, the first with classes, and their page."""
    folder = tmp_path_factory.mktemp("page")
    paths = [folder / "one.pkl", folder / "two.pkl"]
    networks = [network(paths[0], seed=1, c_dim=3), network(paths[1], seed=2)]
    options = [f"--names={HOSTILE},two", f"--classes={','.join(CLASSES)}", "--directions=3"]
    try:
        npm.fetch(page.PACKAGE, page.VERSION, ["dist/ort.wasm.min.mjs"])
        npm.fetch(*browser.AXE, ["axe.min.js"])
    except npm.NpmError as error:
        browser.missing(str(error))
    for name in MODELS:
        (folder / "out/models").mkdir(parents=True, exist_ok=True)
        (folder / "out/models" / name).touch()
    run = CliRunner().invoke(page.main, [*map(str, paths), str(folder / "out"), *options])
    assert run.exit_code == 0, run.output
    return networks, folder / "out"


def test_models_of_others_stay(made):
    assert [name for name in MODELS if (made[1] / "models" / name).exists()] == ["mine.onnx"]


@pytest.fixture(scope="module")
def driver():
    with browser.chromium() as driver:
        yield driver


@pytest.fixture(scope="module")
def opened(made, driver):
    """The page, opened once and left open."""
    with browser.served(made[1]) as address:
        browser.view(driver)
        go(driver, address)
        yield driver


@pytest.fixture
def site(opened):
    """The page; after each test there are no errors on the console, and no host was asked."""
    yield opened
    assert browser.complaints(opened) == []
    assert browser.hosts(opened) <= {"127.0.0.1"}


def go(driver, address):
    driver.get("about:blank")
    driver.get(address)
    browser.wait(driver, "document.body.dataset.drawn || document.querySelector('.trouble')")


def settle(driver):
    """Wait until what was asked for last is drawn."""
    browser.wait(driver, "document.body.dataset.drawn === document.body.dataset.asked")


def pictures(driver):
    """Return the canvases' pixels, `[H, W, 4]` each."""
    flat = driver.execute_script(
        "return [...document.querySelectorAll('canvas')].map(c =>"
        " [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data])"
    )
    return [np.array(one).reshape(SIZE, SIZE, 4) for one in flat]


def at(driver, fragment):
    driver.execute_script("location.hash = arguments[0]", fragment)
    browser.wait(driver, "location.hash.slice(1) === arguments[0]", fragment)
    time.sleep(0.05)  # the event comes after
    settle(driver)
    return pictures(driver)


def reference(G, ws):
    img = G.synthesis(ws, noise_mode="const", force_fp32=True)
    return (img * 127.5 + 128).clamp(0, 255).byte()[0].permute(1, 2, 0).numpy().astype(int)


def styles(G, seed, *, psi=0.7, choice=0):
    z = torch.from_numpy(np.random.RandomState(seed).randn(1, G.z_dim)).float()
    return G.mapping(z, torch.eye(G.c_dim)[[choice]] if G.c_dim else None, truncation_psi=psi)


def assert_shown(shown, networks, make):
    for picture, G in zip(shown, networks, strict=True):
        assert np.abs(picture[..., :3] - reference(G, make(G))).max() <= 2
        assert (picture[..., 3] == 255).all()


def press(driver, name, key, times=1):
    from selenium.webdriver.common.keys import Keys

    driver.find_element("id", name).send_keys(*[getattr(Keys, key)] * times)
    settle(driver)


@pytest.mark.parametrize("seed", [*range(1, 9), 12345, 2**32 - 1])
def test_both_networks_draw_pytorchs_pictures_of_a_seed(made, site, seed):
    shown = at(site, f"seed={seed}")
    assert_shown(shown, made[0], lambda G: styles(G, seed))
    assert np.abs(shown[0] - shown[1]).max() > 20


def test_sliders_move_the_picture_by_keyboard(made, site):
    networks = made[0]
    at(site, "seed=3&psi=0.5")
    press(site, "psi", "ARROW_RIGHT", 2)
    assert "psi=0.6" in site.current_url
    assert_shown(pictures(site), networks, lambda G: styles(G, 3, psi=0.6))
    press(site, "d1", "ARROW_LEFT", 4)
    move = -0.4 * sefa(networks[0])[1]
    assert_shown(pictures(site), networks, lambda G: styles(G, 3, psi=0.6) + move)
    assert site.find_element("css selector", "output[for=d1]").text == "-0.4"


def test_two_seeds_are_mixed_by_layers(made, site):
    def mixed(G):
        ws = styles(G, 3)
        ws[:, -2:] = styles(G, 8)[:, -2:]
        return ws

    at(site, "seed=3&other=8")
    press(site, "fine", "ARROW_RIGHT", 2)
    assert_shown(pictures(site), made[0], mixed)


def test_a_class_is_chosen_by_its_name(made, site):
    at(site, "seed=3")
    names = [option.text for option in site.find_elements("css selector", "#choice option")]
    assert names == CLASSES
    press(site, "choice", "ARROW_DOWN", 2)
    assert_shown(pictures(site), made[0], lambda G: styles(G, 3, choice=2))


def test_arrows_on_a_picture_step_through_seeds(made, site):
    at(site, "seed=3")
    canvas = site.find_element("css selector", "canvas")
    canvas.send_keys("\ue014\ue014")  # arrow right
    settle(site)
    assert_shown(pictures(site), made[0], lambda G: styles(G, 5))
    assert "seed 5" in canvas.get_attribute("aria-label")


def test_the_loop_plays_and_the_address_holds_its_place(made, site):
    before = at(site, "seed=3")
    play = site.find_element("id", "play")
    play.click()
    browser.until(site, lambda: np.abs(pictures(site)[0] - before[0]).max() > 20)
    play.click()
    settle(site)
    paused, address = pictures(site), site.current_url
    assert "at=" in address
    at(site, "seed=4")
    for one, other in zip(at(site, address.partition("#")[2]), paused, strict=True):
        assert np.abs(one - other).max() <= 2  # the address has three digits of it


def test_the_loop_goes_from_picture_to_picture_where_motion_is_unwelcome(made, site):
    browser.view(site, prefers_reduced_motion="reduce")
    at(site, "seed=3")
    asked = site.execute_script("return document.body.dataset.asked")
    site.find_element("id", "play").click()
    browser.wait(site, f"document.body.dataset.drawn > {asked}")
    site.find_element("id", "play").click()
    browser.view(site)
    settle(site)
    step = int(re.search(r"at=(\d+)$", site.current_url)[1])
    assert_shown(pictures(site), made[0], lambda G: styles(G, 3 + step))


def test_a_picture_is_saved_as_png(site, tmp_path):
    shown = at(site, "seed=6")
    behaviour = {"behavior": "allow", "downloadPath": str(tmp_path)}
    site.execute_cdp_cmd("Page.setDownloadBehavior", behaviour)
    site.find_elements("css selector", "figcaption button")[1].click()
    saved, limit = tmp_path / "two-seed6.png", time.time() + browser.WAIT_SEC
    while not saved.exists() and time.time() < limit:
        time.sleep(0.05)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(saved.read_bytes()))), shown[1])


def test_names_are_text(site):
    assert site.find_element("css selector", "figcaption span").text == HOSTILE
    assert site.title == f"{HOSTILE} | two"
    assert site.find_elements("css selector", "figcaption script, h1 script") == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [browser.PHONE, browser.DESKTOP], ids=["phone", "desktop"])
def test_everyone_can_use_it(site, scheme, size):
    browser.view(site, size=size, prefers_color_scheme=scheme)
    assert browser.faults(site) == []
    assert site.execute_script("return document.documentElement.scrollWidth") <= size[0]
    browser.view(site)


def truncate(folder):
    path = next(folder.glob("models/synthesis-*.onnx"))
    path.write_bytes(path.read_bytes()[:-100])


def scramble(folder):
    path = next(folder.glob("models/mapping-*.onnx"))
    path.write_bytes(b"\xff" * path.stat().st_size)


def lose_model(folder):
    next(folder.glob("models/synthesis-*.onnx")).unlink()


def lose_description(folder):
    (folder / "networks.json").write_text("{")


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (truncate, "is incomplete or another one"),
        (scramble, "is not a network that can be run"),
        (lose_model, "The server has no file models/synthesis-"),
        (lose_description, "networks.json is missing or damaged"),
    ],
)
def test_what_is_damaged_is_said(made, driver, tmp_path, damage, sentence):
    folder = tmp_path / "page"
    shutil.copytree(made[1], folder)
    damage(folder)
    with browser.served(folder) as address:
        go(driver, address)
    text = driver.find_element("css selector", ".trouble").text
    assert sentence in text
    assert not driver.find_element("id", "controls").is_displayed()
    assert browser.hosts(driver) == {"127.0.0.1"}


def test_from_the_disk_it_says_that_it_needs_a_server(made, driver):
    driver.get((made[1] / "index.html").as_uri())
    assert "python -m http.server" in driver.find_element("id", "status").text


def refused(*arguments):
    run = CliRunner().invoke(page.main, list(map(str, arguments)))
    assert run.exit_code == 2, run.output
    assert "Traceback" not in run.output
    return " ".join(run.output.split())


def test_mistakes_are_one_line(tmp_path, monkeypatch):
    one, other, banked = (tmp_path / f"{name}.pkl" for name in ("one", "other", "banked"))
    network(one, seed=1)
    network(other, seed=1, z_dim=16)
    network(banked, seed=1, bank=True)
    (tmp_path / "dist").mkdir()
    for name, _ in page.RUNTIME.values():
        assert f"has no {name}" in refused(one, tmp_path / "x", f"--runtime={tmp_path / 'dist'}")
        (tmp_path / "dist" / name).write_text("")
    offline = ["x", f"--runtime={tmp_path / 'dist'}"]
    monkeypatch.chdir(tmp_path)
    assert "--names=a,b: must be 1, one for each network" in refused(one, *offline, "--names=a,b")
    assert "dist: a folder without network-snapshot-*.pkl" in refused(tmp_path / "dist", *offline)
    assert "its z_dim is 16, that of" in refused(one, other, *offline)
    assert "bank_export" in refused(banked, *offline)
    assert "the network has no classes" in refused(one, *offline, "--classes=a,b")
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("STYLEGAN2_FEWSHOT_CACHE", str(tmp_path / "cache"))
    assert "npm, which is not installed; or give --runtime=FOLDER" in refused(one, "x")
    assert not (tmp_path / "x").exists()
