"""The playground in headless Chromium: what a person does with it, by mouse and by keyboard."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import BuildModel
from serving import EARLY, POLICY, TIMEOUT, Running, running

import tokprune_rt as tp
from tokprune_rt import Model

pytest.importorskip("selenium", reason="selenium is not installed")
PROGRAMS = ("chromium", "chromedriver")
pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, PROGRAMS)), reason=f"{' or '.join(PROGRAMS)} is not installed"
)

from selenium import webdriver  # noqa: E402
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select, WebDriverWait  # noqa: E402

TEXT = "The quick brown fox jumps over the lazy dog and the cat."
DOCUMENTS = ["Paris is the capital of France.", "A <b>dog</b> sleeps."]
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
# Remembers what the server answered, since times differ from one request to the next.
LISTEN = """
const plain = window.fetch;
window.answers = [];
window.fetch = async (...given) => {
  const response = await plain(...given);
  window.answers.push(await response.clone().json());
  return response;
};
"""


@pytest.fixture(scope="module")
def models(tiny: BuildModel) -> dict[str, Model]:
    one = {"id2label": {0: "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    reranker = tiny("bert", "sequence-classification", **one)
    return {
        "embedder": tp.load(tiny("bert"), policy=POLICY, threads=1),
        "reranker": tp.load(reranker, policy=EARLY, threads=1),
        "tagger": tp.load(tiny("bert", "token-classification"), threads=1),
        "reader": tp.load(tiny("bert", "question-answering"), threads=1),
    }


@pytest.fixture(scope="module")
def run(models: dict[str, Model]) -> Iterator[Running]:
    with running(models) as found:
        yield found


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with webdriver.Chrome(options, Service(shutil.which("chromedriver"))) as found:
        yield found


class Page:
    """The playground in a browser."""

    def __init__(self, driver: Any, url: str) -> None:
        self.driver = driver
        driver.get(url)
        driver.execute_script(LISTEN)

    def __getitem__(self, name: str) -> Any:
        return self.driver.find_element(By.ID, name)

    def wait(self, condition: Any) -> Any:
        return WebDriverWait(self.driver, TIMEOUT, 0.05).until(lambda _: condition())

    def loaded(self) -> Page:
        self.wait(lambda: self.driver.find_elements(By.CSS_SELECTOR, "#profile option"))
        return self

    def choose(self, name: str, value: str) -> None:
        Select(self[name]).select_by_value(value)

    def write(self, name: str, text: str) -> None:
        self[name].clear()
        self[name].send_keys(text)

    @property
    def answers(self) -> list[Any]:
        return self.driver.execute_script("return window.answers")

    def answer(self, count: int) -> Any:
        """The last of ``count`` answers, once the page is done with it."""
        self.wait(lambda: len(self.answers) == count and not self["run"].get_attribute("aria-busy"))
        return self.answers[-1]

    def rows(self, where: str) -> list[list[str]]:
        """Texts of a table's cells, without its heads."""
        rows = self.driver.find_elements(By.CSS_SELECTOR, f"{where} tbody tr")
        return [[cell.text for cell in row.find_elements(By.XPATH, "*")] for row in rows]

    def facts(self) -> dict[str, str]:
        names, values = (self["facts"].find_elements(By.TAG_NAME, tag) for tag in ("dt", "dd"))
        return {name.text: value.text for name, value in zip(names, values, strict=True)}

    def focused(self) -> str:
        return str(self.driver.switch_to.active_element.get_attribute("id"))

    def press(self, *keys: str) -> None:
        webdriver.ActionChains(self.driver).send_keys(*keys).perform()


@pytest.fixture
def page(driver: Any, run: Running) -> Iterator[Page]:
    """The page of a server without a key; whatever a test does, nothing goes to the console."""
    driver.get_log("browser")
    yield Page(driver, run.url).loaded()
    assert driver.get_log("browser") == []


def without_times(answer: Any) -> Any:
    for side in ("pruned", "dense"):
        answer[side].pop("ms")
    return answer


def shown(value: float, digits: int) -> str:
    """A number as the page writes it."""
    text = f"{value:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def check(page: Page, answer: Any, profile: str) -> None:
    """The page shows an answer's numbers."""
    pruned, dense = answer["pruned"], answer["dense"]
    ratios = [
        dense["ms"] / pruned["ms"],
        dense["macs"] / pruned["macs"],
        answer["tokens"] / answer["kept"],
    ]
    found = page.rows("#times")
    assert found[:2] == [
        ["dense", shown(dense["ms"], 2), shown(dense["macs"] / 1e6, 1), str(answer["tokens"])],
        [profile, shown(pruned["ms"], 2), shown(pruned["macs"] / 1e6, 1), str(answer["kept"])],
    ]
    assert [float(cell.rstrip("x")) for cell in found[2][1:]] == pytest.approx(ratios, abs=0.006)
    facts = page.facts()
    assert facts["Tokens at the end"] == f"{answer['kept']} of {answer['tokens']}"
    assert facts["Multiply-adds"].split("x")[0] == found[2][2].rstrip("x")
    assert facts["Time"].split("x")[0] == found[2][1].rstrip("x")
    layers = [[str(layer), str(kept), ""] for layer, kept in enumerate(answer["kept_per_layer"])]
    assert page.rows("#layers") == layers
    texts = page["tokens"].find_elements(By.TAG_NAME, "p")
    for text, item in zip(texts, answer["items"], strict=True):
        wanted = [t["text"] + ("" if t["left"] is None else str(t["left"])) for t in item]
        assert re.sub(r"\s", "", text.text) == "".join(wanted)
        stayed = text.find_elements(By.CLASS_NAME, "stayed")
        assert [node.text for node in stayed] == [t["text"] for t in item if t["left"] is None]


def test_a_text_and_the_profiles(page: Page, run: Running) -> None:
    assert not page["output"].is_displayed()
    page.write("text", TEXT)
    page["run"].click()
    check(page, page.answer(1), "default")
    # Another profile is shown at once, and only the one chosen last.
    for count, profile in ((2, "fast"), (3, "off")):
        page.choose("profile", profile)
        answer = page.answer(count)
        check(page, answer, profile)
        direct = run.post("/playground", text=TEXT, profile=profile)
        assert without_times(answer) == without_times(direct)
        assert page["summary"].text.startswith(f"{profile}: {answer['kept']} of")
    assert page.facts()["Cosine to the dense vector"] == "1.0000"
    assert "nothing was pruned" in page["summary"].text


def test_a_text_with_documents(page: Page, run: Running) -> None:
    page.choose("profile", "fast")
    page.write("text", TEXT)
    page.write("documents", "\n\n".join(DOCUMENTS) + "\n ")
    page["run"].click()
    answer = page.answer(1)
    check(page, answer, "fast")
    direct = run.post("/playground", text=TEXT, documents=DOCUMENTS, profile="fast")
    assert without_times(answer) == without_times(direct)
    cosines = [direct[side]["result"]["similarities"] for side in ("pruned", "dense")]
    assert page.rows("#result") == [
        [text, f"{a:.4f}", f"{b:.4f}"] for text, a, b in zip(DOCUMENTS, *cosines, strict=True)
    ]


def test_a_query_with_documents(page: Page, run: Running, models: dict[str, Model]) -> None:
    page.choose("model", "reranker")
    page.choose("profile", "fast")
    page.write("text", TEXT)
    page.write("documents", "\n".join(DOCUMENTS))
    page["run"].click()
    check(page, page.answer(1), "fast")
    pairs = [(TEXT, document) for document in DOCUMENTS]
    pruned, dense = (models["reranker"].predict(pairs, profile=name) for name in ("fast", "off"))
    assert pruned != dense
    assert page.rows("#result") == [
        [f"{document}: LABEL_0", f"{a['score']:.4f}", f"{b['score']:.4f}"]
        for document, a, b in zip(DOCUMENTS, pruned, dense, strict=True)
    ]
    # What is shown belongs to the model that is chosen.
    page.choose("model", "embedder")
    assert not page["output"].is_displayed() and page["summary"].text == ""


def test_tokens_and_answers(page: Page, models: dict[str, Model]) -> None:
    page.choose("model", "tagger")
    assert not page["documents"].is_displayed()
    page.write("text", TEXT)
    page["run"].click()
    check(page, page.answer(1), "off")
    entities = models["tagger"].tag(TEXT, aggregation_strategy="simple")
    assert entities
    for entity in entities:
        assert f"{entity['word']} ({entity['entity_group']})" in page["result"].text
    page.choose("model", "reader")
    assert page["documents"].accessible_name == "Context"
    page.write("text", "Who?")
    page.write("documents", TEXT)
    page["run"].click()
    check(page, page.answer(2), "off")
    found = models["reader"].answer("Who?", TEXT)
    assert page.rows("#result")[1] == ["dense", f"{found['score']:.4f}", found["answer"]]


def test_by_keyboard(page: Page) -> None:
    page["model"].send_keys(Keys.SHIFT + Keys.TAB)
    order = []
    while "run" not in order:
        page.press(Keys.TAB)
        order.append(page.focused())
        assert len(order) < 10
    assert order == ["model", "profile", "text", "documents", "run"]
    page.press(Keys.ENTER)
    page.answer(1)
    # The focus stays where it was; the result is announced, an error interrupts.
    assert page.focused() == "run" and page["summary"].aria_role == "status"
    page["text"].send_keys(Keys.ENTER)
    page["text"].send_keys(Keys.CONTROL + Keys.ENTER)
    page.answer(2)
    assert page.focused() == "text" and page["error"].aria_role == "alert"
    names = {name: page[name].accessible_name for name in ("model", "profile", "text", "run")}
    assert names == {"model": "Model", "profile": "Profile", "text": "Text", "run": "Run"}
    assert page["documents"].accessible_name.startswith("Documents to compare it with")


def test_an_error_takes_the_place_of_the_result(driver: Any, run: Running) -> None:
    page = Page(driver, run.url).loaded()
    page["run"].click()
    page.answer(1)
    page.write("text", " ")
    page["run"].click()
    page.answer(2)
    assert page["error"].text == "text is empty" and not page["output"].is_displayed()
    page.write("text", TEXT)
    page["run"].click()
    check(page, page.answer(3), "default")
    assert page["error"].text == ""


def test_it_asks_for_the_key(driver: Any, models: dict[str, Model]) -> None:
    with running({"embedder": models["embedder"]}, api_key="a-key") as run:
        page = Page(driver, run.url)
        page.wait(lambda: page["key"].is_displayed())
        assert page["key"].accessible_name == "API key"
        page["key"].send_keys("a-key", Keys.TAB)
        page.loaded()
        assert page["error"].text == ""
        page.write("text", TEXT)
        before = len(page.answers)
        page["run"].click()
        check(page, page.answer(before + 1), "default")


def test_it_fits_a_phone(page: Page, tmp_path: Path) -> None:
    page["run"].click()
    page.answer(1)
    size = {"width": 360, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        width = page.driver.execute_script("return document.documentElement.scrollWidth")
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert width == 360
