"""The report page in headless Chromium: it answers, prints whole, and no request leaves it."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from playwright.sync_api import Browser

from ela_probe import analyze, prune
from ela_probe.analysis.result import Analysis
from ela_probe.pruning.ablation import Ablation, Change
from ela_probe.pruning.budgets import plans_by_count
from ela_probe.pruning.plan import SkipPlan
from ela_probe.report.history import History
from ela_probe.report.page import write_report
from tests.support import layer_mixing
from tests.support.browser import Reader, chromium
from tests.support.comparisons import of_analysis
from tests.support.costs import PRICES, costs_of, priced, seconds
from tests.support.networks import settled
from tests.support.synthetic_analyses import make_analysis, with_damage, with_views

ANALYSIS = with_views(with_damage(make_analysis((5, 4), samples=40)))
SAMPLES = [(np.full((3, 8, 8), k), k % 3) for k in range(40)]  # images and labels
CELLS = "#picture-pairs .drawing g[aria-label='cell'] rect"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with every section."""
    stages = [part.stage for part in ANALYSIS.stages]
    names = [site.name for stage in stages for site in stage.sites]
    changes = (Change(site=n, action="skip", loss=0.1 * k, square=1) for k, n in enumerate(names))
    priced_stages = [priced(stage, PRICES, affine=seconds(0.01)) for stage in stages]
    return write_report(
        ANALYSIS,
        tmp_path_factory.mktemp("page") / "report.html",
        other=with_damage(make_analysis((5, 4), samples=40, seed=3), seed=3),
        comparison=of_analysis(ANALYSIS),
        costs=costs_of(priced_stages, of=stages),
        ablation=Ablation(samples=10, changes=tuple(changes), complete=True),
        history=History(
            [{"epoch": e, "train_loss": 1 - e / 2, "skipped": e} for e in (0.0, 0.5)],
            [
                {"epoch": e, "site": n, "action": "skip" if e and k == 1 else "keep",
                 "kl": 0.1 * k + e, "damage": None if e else 0.01 * k}
                for e in (0.0, 1.0) for k, n in enumerate(names)
            ],
        ),
        samples=SAMPLES,
    )  # fmt: skip


@pytest.fixture
def reader(browser: Browser, path: Path) -> Iterator[Reader]:
    opened = Reader(browser, path)
    yield opened
    opened.context.close()
    assert opened.problems == []


def test_every_picture_says_what_is_seen_and_has_a_table(reader: Reader) -> None:
    figures = reader.page.query_selector_all("figure[data-picture]")
    assert len(figures) >= 17
    for figure in figures:
        drawn = figure.query_selector(".drawing svg[role=img]")
        assert drawn is not None, figure.get_attribute("id")
        assert len(drawn.get_attribute("aria-label") or "") > 20
        figure.query_selector("summary").click()
        table = figure.wait_for_selector("table")
        assert table.query_selector("caption")
        assert all(th.get_attribute("scope") for th in table.query_selector_all("th"))
        assert table.query_selector_all("tbody tr")


def test_pointing_at_a_cell_shows_the_numbers_of_the_pair(reader: Reader) -> None:
    cell = reader.page.locator(CELLS).nth(4)
    cell.scroll_into_view_if_needed()
    cell.hover()
    tip = reader.page.wait_for_selector("#picture-pairs g[aria-label=tip] text")
    row = ANALYSIS.pairs.iloc[4]
    words = tip.text_content() or ""
    assert row["site_i"] in words
    assert row["site_j"] in words
    assert f"kl {row['kl']:.4g}" in words


def test_a_click_on_a_cell_chooses_the_pair_and_its_weights(reader: Reader) -> None:
    cell = reader.page.locator(CELLS).nth(8)
    cell.scroll_into_view_if_needed()
    cell.click()
    row = ANALYSIS.pairs.iloc[8]
    said = reader.page.text_content("#pair-words") or ""
    assert said.startswith(f"{row['site_i']} → {row['site_j']}: kl {row['kl']:.4g}")
    reader.page.click("#picture-weights summary")
    shown = reader.page.locator("#picture-weights tbody tr")
    weights = ANALYSIS.stages[0].weights[row["j"]]
    shown.first.wait_for()  # the table is made when it is opened
    assert shown.count() == row["j"] + 1
    for source in range(row["j"] + 1):
        later = shown.nth(source).locator("[data-value]").last.get_attribute("data-value")
        assert float(later or "nan") == pytest.approx(weights[source], rel=1e-3)


def test_heads_classes_and_samples_are_shown(reader: Reader) -> None:
    views = ANALYSIS.stages[0].views
    assert views is not None
    for name, cells in (("heads", 2 * 4), ("classes", 2 * 4)):  # class 1 does not occur
        drawn = reader.page.locator(f"#picture-{name}-0 .drawing g[aria-label=cell] rect")
        assert drawn.count() == cells
    images = reader.page.locator("#picture-samples-0 .drawing g[aria-label=image] image")
    assert images.count() == len(views.unusual_positions)
    assert (images.first.get_attribute("href") or "").startswith("data:image/png;base64,")
    reader.page.click("#picture-samples-0 summary")
    row = reader.page.locator("#picture-samples-0 tbody tr").nth(1)
    row.wait_for()  # the table is made when it is opened
    assert row.locator("th, td").all_inner_texts()[:2] == ["3", "class 0"]


def test_stage_and_measure_are_chosen_by_keyboard(reader: Reader) -> None:
    reader.page.focus("#stage")
    reader.page.keyboard.press("ArrowDown")
    reader.page.focus("#measure")
    reader.page.keyboard.press("ArrowDown")
    label = reader.page.get_attribute("#picture-pairs .drawing svg[role=img]", "aria-label")
    assert (label or "").startswith("shape of the pairs of stages.1")
    assert reader.page.locator(CELLS).count() == 6 + 1  # all pairs, and the mark on the chosen one


def column(reader: Reader, name: str) -> list[str]:
    """The cells of a column of the table of sites that are shown."""
    headings = reader.page.locator("#sites thead th").all_inner_texts()
    place = [text.strip(" ▲▼") for text in headings].index(name)
    rows = reader.page.locator("#sites tbody tr:visible").all()
    return [row.locator("th, td").nth(place).inner_text() for row in rows]


def test_a_heading_sorts_up_and_down_with_missing_values_last(reader: Reader) -> None:
    heading = reader.page.locator("#sites thead th", has_text="mass")
    for direction in ("ascending", "descending"):
        heading.locator("button").press("Enter")
        assert heading.get_attribute("aria-sort") == direction
        cells = column(reader, "mass")
        numbers = [float(text) for text in cells if text != "–"]
        assert numbers == sorted(numbers, reverse=direction == "descending")
        assert cells[-2:] == ["–", "–"]  # the first site of each stage


def test_a_filter_takes_text_and_conditions(reader: Reader) -> None:
    filter_box = reader.page.locator("#sites input[type=search]")
    filter_box.fill("stages.1.")
    assert len(column(reader, "site")) == 4
    filter_box.fill("kl < 0.05")
    assert len(column(reader, "site")) == int((ANALYSIS.sites["kl"] < 0.05).sum()) > 0
    filter_box.fill("nothing has this")
    assert column(reader, "site") == []


def test_the_slider_shows_and_gives_the_plan_of_every_budget(reader: Reader) -> None:
    costs = costs_of([priced(p.stage, PRICES, affine=seconds(0.01)) for p in ANALYSIS.stages],
                     of=[p.stage for p in ANALYSIS.stages])  # fmt: skip
    plans = plans_by_count(ANALYSIS, costs=costs)
    slider = reader.page.locator("#budget")
    slider.focus()
    slider.press("Home")
    for index, (count, plan) in enumerate(plans.items()):
        said = reader.page.text_content("#budget-words") or ""
        assert said.startswith(f"{count} of 9 ")
        assert plan.origin.predicted_loss is not None
        assert plan.origin.predicted_ratio is not None
        assert f"{100 * plan.origin.predicted_ratio:.3g} % of now" in said
        label = reader.page.get_attribute("#picture-plan svg[role=img]", "aria-label") or ""
        assert label.startswith(f"Plan that changes {count} of 9 retrievals")
        assert all(name in label for name in plan.changes)
        document = reader.page.evaluate(f"JSON.stringify(planDocument({index}))")
        assert SkipPlan.parse(document) == plan
        slider.press("ArrowRight")
    assert slider.get_attribute("max") == str(len(plans) - 1)


def test_a_saved_plan_prunes_the_model(browser: Browser, tmp_path: Path) -> None:
    model = settled("mrla_b_resnet20").double().eval()
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(6, 3, 16, 16, generator=generator).double()
    analysis = analyze(model, [(images, torch.tensor([0, 1, 2, 0, 1, 2]))])
    assert analysis.has_damage
    opened = Reader(browser, write_report(analysis, tmp_path / "r.html"))
    opened.page.locator("#budget").fill("3")
    saved = opened.download("#save-plan", tmp_path)
    opened.context.close()
    assert saved.name == "plan-3.json"
    plan = SkipPlan.load(saved)
    assert plan == plans_by_count(analysis)[3]
    smaller = prune(model, plan)
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in model.parameters())
    assert torch.isfinite(smaller(images)).all()


def test_tables_are_saved_whole_and_formulas_made_harmless(
    browser: Browser, tmp_path: Path
) -> None:
    analysis = make_analysis((14, 1), samples=20, names="=1,1.{stage}.{site}")
    opened = Reader(browser, write_report(analysis, tmp_path / "r.html"))
    opened.page.click("#picture-pairs summary")
    pairs = opened.download("#picture-pairs .table button:has-text('CSV')", tmp_path)
    rows = list(csv.DictReader(io.StringIO(pairs.read_text("utf-8"))))
    assert len(rows) == 14 * 13 // 2 == len(analysis.pairs)
    assert opened.page.locator("#picture-pairs tbody tr").count() == min(100, len(rows))
    assert all(row["earlier"].startswith("'=1,1.") for row in rows)
    expected = sorted(analysis.pairs["kl"])
    assert [float(row["kl"]) for row in rows] == pytest.approx(expected, rel=1e-3)
    sites = opened.download("#sites button:has-text('JSON')", tmp_path)
    records = json.loads(sites.read_text("utf-8"))
    assert [r["site"] for r in records] == list(analysis.sites["site"])
    assert records[1]["kl"] == analysis.sites["kl"][1]
    opened.context.close()
    assert opened.problems == []


def test_a_picture_is_enlarged_and_closed_by_keyboard(reader: Reader) -> None:
    reader.page.locator("#picture-damage button", has_text="Enlarge").press("Enter")
    drawn = reader.page.wait_for_selector("#enlarged[open] svg[role=img]")
    assert float(drawn.get_attribute("width") or 0) > 1000
    reader.page.keyboard.press("Escape")
    reader.page.wait_for_selector("#enlarged", state="hidden")


BRIGHTNESS = """() => ["body", "#picture-divergence svg text", "#sites td"].map((where) => {
  const style = getComputedStyle(document.querySelector(where));
  const colour = where === "body" ? style.backgroundColor : style.color;
  return colour.match(/\\d+/g).slice(0, 3).reduce((sum, part) => sum + Number(part), 0) / 765;
})"""


def test_dark_and_light_follow_the_system_and_the_button(browser: Browser, path: Path) -> None:
    for scheme in ("light", "dark"):
        opened = Reader(browser, path, scheme=scheme)
        page, *texts = opened.page.evaluate(BRIGHTNESS)
        assert (page > 0.9) == (scheme == "light")
        assert all(abs(text - page) > 0.5 for text in texts)
        opened.page.click("#theme")
        other, *texts = opened.page.evaluate(BRIGHTNESS)
        assert (other > 0.9) != (page > 0.9)
        assert all(abs(text - other) > 0.5 for text in texts)
        opened.page.emulate_media(media="print", color_scheme=scheme)
        assert opened.page.evaluate(BRIGHTNESS)[0] > 0.9  # paper is white
        opened.context.close()


# What is wider than the page, or cut off by a box that scrolls.
CLIPPED = """() => [...document.querySelectorAll("table, svg, p, dd, .scroll, .drawing")]
  .filter((part) => part.getClientRects().length && (
    part.getBoundingClientRect().right > document.documentElement.clientWidth + 1 ||
    (part.matches(".scroll") && part.scrollHeight > part.clientHeight + 1)))
  .map((part) => part.closest("[id]").id)"""


def test_before_printing_every_table_is_there_at_once(reader: Reader) -> None:
    """A browser prints right after the event; it does not wait for what comes later."""
    tables = """() => { window.dispatchEvent(new Event("beforeprint"));
      const figures = [...document.querySelectorAll("figure[data-picture]")];
      return figures.filter((f) => !f.querySelector("details[open] tbody tr")).length; }"""
    assert reader.page.evaluate(tables) == 0


def test_on_paper_everything_is_open_and_nothing_is_cut_off(reader: Reader) -> None:
    reader.page.set_viewport_size({"width": 1032, "height": 720})  # A4, landscape
    reader.page.emulate_media(media="print")
    reader.page.wait_for_selector("#printed-pairs svg")
    assert reader.page.locator("details:not([open])").count() == 0
    assert reader.page.evaluate(CLIPPED) == []
    # two analyses of two stages: three heatmaps beside the chosen one
    assert reader.page.locator("#printed-pairs > figure").count() == 3
    pages = reader.page.pdf(prefer_css_page_size=True).count(b"/Type /Page\n")
    assert pages >= 8
    reader.page.emulate_media(media="screen")
    assert reader.page.locator("details[open]").count() == 0


def test_a_narrow_window_has_no_sideways_scrolling(browser: Browser, path: Path) -> None:
    opened = Reader(browser, path, width=360)
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= 360
    opened.context.close()
    assert opened.problems == []


def test_contents_lead_to_every_section(reader: Reader) -> None:
    links = reader.page.locator("#contents a").all()
    assert len(links) == reader.page.locator("main h2").count() >= 10
    for link in links:
        target = link.get_attribute("href") or ""
        assert reader.page.locator(target).count() == 1


@pytest.mark.parametrize(("ci", "outcome"), [("true", "Failed"), ("", "Skipped")])
def test_without_a_browser_tests_are_skipped_but_fail_in_ci(
    monkeypatch: pytest.MonkeyPatch, ci: str, outcome: str
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CI", ci)
    with pytest.raises(BaseException, match="make browser") as raised, chromium():
        pass
    assert raised.type.__name__ == outcome


SIZES = {"3": (3,), "18": (6, 6, 6), "54": (18, 18, 18), "110": (110,), "one each": (1, 1)}


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_any_number_of_sites(browser: Browser, tmp_path: Path, sizes: tuple[int, ...]) -> None:
    analysis: Analysis = with_damage(make_analysis(sizes, samples=20))
    path = write_report(analysis, tmp_path / "r.html")
    assert path.stat().st_size < 2e6
    opened = Reader(browser, path)
    pairs = sizes[0] * (sizes[0] - 1) // 2
    assert opened.page.locator(CELLS).count() == pairs + bool(pairs)  # the chosen one is marked
    # Labels of the axes don't touch.
    overlaps = """(where) => {
      const boxes = [...document.querySelectorAll(where)].map((t) => t.getBoundingClientRect());
      return boxes.slice(1).filter((box, k) => box.left < boxes[k].right).length; }"""
    for picture in ("divergence", "damage", "pairs"):
        where = f"#picture-{picture} g[aria-label='x-axis tick label'] text"
        assert opened.page.evaluate(overlaps, where) == 0
    opened.context.close()
    assert opened.problems == []


def test_a_page_of_signed_weights_has_distances_in_place_of_divergences(
    browser: Browser, tmp_path: Path
) -> None:
    model = layer_mixing.denseformer()
    analysis = analyze(model, [layer_mixing.batch(20)], progress=False)
    reader = Reader(browser, write_report(analysis, tmp_path / "report.html"))
    assert reader.problems == []
    assert reader.page.locator("#measure option").all_inner_texts() == ["l2", "cosine"]
    reader.page.select_option("#measure", "1")
    assert "1 − cosine" in reader.page.inner_text("#pair-words")
    columns = reader.page.evaluate("PICTURES.pairs.table().columns")
    assert columns == ["earlier", "later", "l2", "standard error", "cosine"]
    assert reader.page.locator("#picture-divergence").count() == 0
    assert reader.problems == []
