"""The report in a real browser: what can be clicked, typed, pointed at, saved and printed."""

import re
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest

from featstore.analysis.correlate import correlate_protocols
from featstore.analysis.rank import rank_models
from featstore.reporting.page import report
from featstore.reporting.text import coefficient, percent

SVG = "{http://www.w3.org/2000/svg}"
LAPTOP, PHONE = {"width": 1280, "height": 800}, {"width": 375, "height": 700}


@pytest.fixture(scope="module")
def path(first_study, tmp_path_factory):
    return report(first_study, tmp_path_factory.mktemp("report") / "report.html")


@pytest.fixture
def open_page(chromium, path):
    """Opens the report; whatever it complains of or asks for beside itself fails the test."""
    pages, complaints = [], []

    def opened(viewport=LAPTOP):
        page = chromium.new_page(viewport=viewport)
        pages.append(page)
        page.set_default_timeout(5000)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: complaints.append(request.url))
        page.goto(path.as_uri())
        assert complaints == [path.as_uri()]
        complaints.clear()
        return page

    yield opened
    for page in pages:
        page.close()
    assert [one for one in complaints if not one.startswith("blob:")] == []


@pytest.fixture
def page(open_page):
    return open_page()


def column(page, table, number):
    """Text of a column of a table's rows, top to bottom, those that are shown."""
    return page.evaluate(
        """([id, i]) => [...document.getElementById(id).querySelectorAll("tbody tr:not(.group)")]
        .filter(row => !row.hidden).map(row => row.cells[i].innerText.trim())""",
        [table, number],
    )


def head(page, table, number):
    return page.locator(f'[id="{table}"] thead th').nth(number)


def menu(page, facet):
    return page.locator(f'label:text("{facet}") > select')


def filter_of(page, table):
    """The box above a table, and the words beside it that count its rows."""
    tools = page.locator(f'.tools:has(+ .wide > [id="{table}"])')
    return tools.locator("input"), tools.locator("output")


def test_a_study_of_26_models_11_datasets_and_10_protocols_fits_in_a_mail(path):
    assert path.stat().st_size < 5_000_000


def test_a_column_of_numbers_is_sorted_as_numbers_with_what_is_missing_last(page, first_study):
    scores = first_study["score"].sel(protocol="ncm", bn_mode="eval", dataset="pascal")
    menu(page, "Protocol").select_option("ncm")
    head(page, "heat-ncm", 4).locator("button").click()
    falling = [percent(one) for one in np.sort(scores.dropna("model"))[::-1]]
    assert column(page, "heat-ncm", 4) == [*falling, "–"]
    assert head(page, "heat-ncm", 4).get_attribute("aria-sort") == "descending"
    head(page, "heat-ncm", 4).locator("button").press("Enter")
    assert column(page, "heat-ncm", 4) == [*falling[::-1], "–"]
    assert head(page, "heat-ncm", 4).get_attribute("aria-sort") == "ascending"
    head(page, "heat-ncm", 0).locator("button").click()
    assert column(page, "heat-ncm", 0) == sorted(first_study["model"].values)
    assert head(page, "heat-ncm", 4).get_attribute("aria-sort") is None


def test_groups_keep_their_rows_when_they_are_sorted_and_filtered(page):
    def groups():
        return page.evaluate(
            """[...document.getElementById("backbone-table").tBodies].map(body =>
            [...body.rows].filter(row => !row.hidden).map(row => row.cells[0].innerText))"""
        )

    before = groups()
    head(page, "backbone-table", 0).locator("button").press("Enter")
    after = groups()
    assert [set(one) for one in after] == [set(one) for one in before]
    assert [one[0] for one in after] == [one[0] for one in before]  # the heading
    assert all(one[1:] == sorted(one[1:]) for one in after)

    box, count = filter_of(page, "backbone-table")
    box.fill("KNN zscore")
    shown = groups()
    assert all("knn-marks-zscore" in name for one in shown for name in one[1:])
    assert sum(len(one) - 1 for one in shown if one) == int(count.inner_text().split()[0])
    assert shown[2] == []  # linear-marks alone, so its heading goes too
    box.fill("train mode")  # of a heading
    assert [len(one) for one in groups()] == [0, 0, len(before[2])]
    box.fill("")
    assert groups() == after


def test_every_table_of_many_rows_can_be_filtered(page, first_study):
    long = page.evaluate(
        """[...document.querySelectorAll("table.sortable")].filter(table =>
        table.querySelectorAll("tbody tr:not(.group)").length >= 8).map(table => table.id)"""
    )
    assert {"ranking-table", "pairs-table", "heat-logreg", "models-table"} < set(long)
    for table in long:
        box, count = filter_of(page, table)
        assert box.get_attribute("aria-label").startswith("Filter rows: ")
        rows = len(column(page, table, 0))
        assert count.text_content() == f"{rows} of {rows} rows"
    box, count = filter_of(page, "ranking-table")
    box.press_sequentially("VIT")
    free = first_study["model"].values[first_study["bn_free"].values]
    assert set(column(page, "ranking-table", 0)) == set(free)
    assert count.inner_text() == "9 of 26 rows"
    box.fill("no such model")
    assert count.inner_text() == "0 of 26 rows"


def test_scores_are_chosen_by_protocol_and_bn_mode(page, first_study):
    order = rank_models(first_study)["model"].values
    protocol, mode = menu(page, "Protocol"), menu(page, "BN mode")
    assert protocol.locator("option").all_inner_texts()[0] == "logreg"  # the reference
    for name, chosen in (("logreg", "eval"), ("knn-marks", "adapt"), ("knn-marks", "batch †")):
        protocol.select_option(name)
        mode.select_option(chosen)
        plain = chosen.removesuffix(" †")
        table = f"heat-{name}" + f"-{plain}" * (plain != "eval")
        assert page.locator("#scores table:visible").get_attribute("id") == table
        cells = first_study["score"].sel(protocol=name, bn_mode=plain, model=order)
        for number, dataset in enumerate(first_study["dataset"].values, 1):
            expected = [percent(one) for one in cells.sel(dataset=dataset).values]
            assert column(page, table, number) == expected
    protocol.select_option("finetune-marks")
    assert page.locator("#scores").get_by_text("This was not measured.").is_visible()


@pytest.fixture(scope="module")
def pairs(first_study):
    return correlate_protocols(first_study, by_dataset=False)


def told(pairs, statistic, row, other):
    """What a cell of the map is to say."""
    one = pairs.sel(protocol=row, other=other)
    r, low, high = (one[f"{statistic}{end}"].item() for end in ("", "_low", "_high"))
    short = coefficient(r).replace("0.", ".")
    interval = f"[{coefficient(low)}, {coefficient(high)}]"
    mark = " †" if other == "knn-marks-zscore-own" else ""
    return f"{row}, {other}{mark}: {short} {interval} n = {one['n'].item():.0f}"


def test_a_cell_that_is_pointed_at_says_its_interval(page, pairs):
    tip = page.locator("#tip")
    assert not tip.is_visible()
    cells = page.locator("#map-pearson-independent tbody tr").nth(3).locator("td")
    for number, other in ((1, "knn-marks-zscore"), (9, "finetune-marks")):
        cells.nth(number).hover()
        assert tip.inner_text() == told(pairs, "pearson", "logreg", other)
    assert tip.get_attribute("role") == "tooltip"
    tip.hover()  # it can be pointed at itself, and stays
    assert tip.is_visible()
    page.locator("#protocols h2").hover()
    assert not tip.is_visible()


def test_a_cell_that_has_the_focus_says_its_interval(page, pairs):
    tip = page.locator("#tip")
    menu(page, "Coefficient").select_option("Spearman ρ")
    menu(page, "Coefficient").focus()
    page.keyboard.press("Tab")  # the region that scrolls
    page.keyboard.press("Tab")
    names = pairs["protocol"].values
    focused = page.locator(":focus")
    at = [0, 0]
    keys = {"ArrowRight": (0, 1), "ArrowDown": (1, 0), "ArrowLeft": (0, -1), "ArrowUp": (-1, 0)}
    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "ArrowLeft", "ArrowUp", "ArrowDown"):
        page.keyboard.press(key)
        at = [at[0] + keys[key][0], at[1] + keys[key][1]]
        assert tip.inner_text() == told(pairs, "spearman", *(names[i] for i in at))
        assert focused.get_attribute("aria-describedby") == tip.get_attribute("id")
    page.keyboard.press("End")
    assert tip.inner_text() == told(pairs, "spearman", names[at[0]], names[-1])
    page.keyboard.press("ArrowRight")  # there is no more
    assert tip.inner_text() == told(pairs, "spearman", names[at[0]], names[-1])
    page.keyboard.press("Escape")
    assert not tip.is_visible()


def test_a_cell_of_scores_says_its_interval(page, first_study):
    one = first_study.sel(model="dino-vitb16", dataset="cub", bn_mode="eval", protocol="logreg")
    low, score, high = (percent(one[name].item()) for name in ("low", "score", "high"))
    page.locator("#heat-logreg tbody tr", has_text="dino-vitb16").locator("td").nth(2).hover()
    assert page.locator("#tip").inner_text() == f"dino-vitb16, cub: {score} [{low}, {high}]"
    missing = page.locator("#heat-ncm tbody tr", has_text="simclr").locator("td").nth(3)
    menu(page, "Protocol").select_option("ncm")
    missing.hover()
    assert page.locator("#tip").inner_text() == "simclr-resnet50, pascal: –"


def test_points_of_a_scatter_are_reached_from_left_to_right(page, first_study):
    plot = page.locator('svg[data-name="domain-cub"]')
    plot.locator("[tabindex]").focus()
    names = []
    for key in ["Home"] + ["ArrowRight"] * 25:
        page.keyboard.press(key)
        assert page.locator(":focus").get_attribute("aria-label") == (
            page.locator("#tip").inner_text()
        )
        names.append(page.locator("#tip").inner_text())
    home = first_study["score"].sel(protocol="logreg", bn_mode="eval", dataset="imagenet")
    assert names == [str(name) for name in home.sortby(home)["model"].values]


def test_what_a_filter_hides_is_no_dead_end_for_the_keyboard(page):
    page.locator("#heat-logreg [tabindex]").focus()
    box, _ = filter_of(page, "heat-logreg")
    box.fill("mae-vitb16")
    current = page.locator("#heat-logreg [tabindex]")
    assert current.count() == 1
    assert current.is_visible()


def saved(page, button, tmp_path):
    with page.expect_download() as waiting:
        button.press("Enter")
    place = tmp_path / waiting.value.suggested_filename
    waiting.value.save_as(place)
    return place


def stands_alone(text):
    assert re.findall(r"(?:href|src)=\"(?!#)[^\"]*|url\((?!#)[^)]*", text) == []
    root = ElementTree.fromstring(text)
    assert root.tag == f"{SVG}svg"
    assert "sans-serif" in root.get("font-family")
    width, height = root.get("width"), root.get("height")
    assert root.get("viewBox") == f"0 0 {width} {height}"
    paper = root.find(f"{SVG}rect")
    assert (paper.get("fill"), paper.get("width"), paper.get("height")) == (
        ("#ffffff", width, height)
    )
    return root


def words(root):
    return [text for one in root.iter(f"{SVG}text") if (text := "".join(one.itertext()).strip())]


def test_a_plot_is_saved_as_a_file_that_stands_alone(page, first_study, tmp_path, chromium):
    figure = page.locator("figure", has=page.locator('svg[data-name="domain-cub"]'))
    place = saved(page, figure.get_by_role("button"), tmp_path)
    assert place.name == "domain-cub.svg"
    root = stands_alone(place.read_text(encoding="utf-8"))
    assert {"imagenet (%)", "cub (%)", "contrastive", "resnet", "95 % interval"} <= set(words(root))
    points = {title.text for title in root.iter(f"{SVG}title")}
    assert set(first_study["model"].values) < points
    assert root.find(f"{SVG}title").text.startswith("Models by logreg: imagenet across, cub")
    # A browser draws it as it stands on the page.
    shown = chromium.new_page()
    shown.goto(place.as_uri())
    width = shown.locator("svg > svg").bounding_box()["width"]
    assert width == pytest.approx(float(root.get("width")), abs=0.01)
    shown.close()


def test_a_map_is_saved_with_the_numbers_of_the_dataset(page, pairs, tmp_path):
    figure = page.locator("figure", has=page.locator("#map-pearson-independent"))
    place = saved(page, figure.get_by_role("button"), tmp_path)
    assert place.name == "map-pearson-independent.svg"
    root = stands_alone(place.read_text(encoding="utf-8"))
    found = words(root)
    r = pairs["pearson"].values.ravel()
    expected = [coefficient(one).replace("0.", ".") for one in r]
    assert [one for one in found if re.fullmatch(r"−?[01]?\.\d\d", one)] == expected
    assert "Pearson r, 26 independent models" in found
    cells = root.findall(f"{SVG}rect")[1:]
    assert len(cells) == len(expected)
    assert len({cell.get("fill") for cell in cells}) > 5


def test_every_figure_can_be_saved(page, tmp_path):
    page.evaluate('document.querySelectorAll("details").forEach(one => one.open = true)')
    figures = page.locator("figure")
    assert figures.count() > 40
    assert figures.count() == page.locator("figure > button.save").count()
    for name in ("bn-shift", "reliability-logreg", "pair-finetune-marks"):
        figure = page.locator("figure", has=page.locator(f'svg[data-name="{name}"]'))
        assert figure.get_by_role("button").get_attribute("aria-label").startswith("Save SVG: ")
        stands_alone(saved(page, figure.get_by_role("button"), tmp_path).read_text("utf-8"))


@pytest.mark.parametrize("viewport", [LAPTOP, PHONE], ids=["laptop", "phone"])
def test_the_page_never_scrolls_sideways(open_page, viewport):
    page = open_page(viewport)
    page.evaluate('document.querySelectorAll("details").forEach(one => one.open = true)')
    for menu in page.locator("select").all():
        menu.select_option(index=menu.locator("option").count() - 1)
    widths = "[document.documentElement.scrollWidth, document.body.scrollWidth]"
    assert max(page.evaluate(widths)) <= viewport["width"]
    beyond = page.evaluate(
        """[...document.querySelectorAll("main *:not(.wide *):not(svg *)")].filter(one =>
        one.getBoundingClientRect().right > innerWidth).map(one => one.outerHTML.slice(0, 99))"""
    )
    assert beyond == []


def test_a_tip_stays_on_a_small_screen(open_page):
    page = open_page(PHONE)
    page.locator("#map-pearson-independent tbody td").first.click()
    at = page.locator("#tip").bounding_box()
    assert at["x"] >= 0
    assert at["x"] + at["width"] <= 375


def test_the_tab_key_reaches_every_control_in_the_order_of_the_page(page):
    page.evaluate('document.querySelectorAll("details").forEach(one => one.open = true)')
    page.evaluate("document.activeElement.blur()")
    controls = page.evaluate(
        """{
        window.controls = [...document.querySelectorAll(
          "a[href], button, input, select, summary, .wide, [tabindex]")]
          .filter(one => one.checkVisibility());
        window.seen = [];
        document.addEventListener("focusin", event => seen.push(controls.indexOf(event.target)));
        controls.length }"""
    )
    assert controls > 250
    for _ in range(controls):
        page.keyboard.press("Tab")
    assert page.evaluate("seen") == list(range(controls))


def test_the_keyboard_skips_to_the_results(page):
    page.keyboard.press("Tab")
    skip = page.get_by_role("link", name="Skip to the results")
    assert skip.bounding_box()["x"] >= 0
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate('document.querySelector("main").contains(document.activeElement)')


def test_whoever_cannot_see_is_told_what_everything_is(page):
    page.evaluate('document.querySelectorAll("details").forEach(one => one.open = true)')
    for role in ("banner", "main", "navigation"):
        assert page.get_by_role(role).count() == 1
    nameless = page.evaluate(
        """[...document.querySelectorAll("button, input, select, svg, section, [role=region]")]
        .filter(one => one.ariaHidden !== "true" && !one.closest("svg svg")
          && !(one.getAttribute("aria-label") || one.labels?.length || one.textContent.trim()))
        .map(one => one.outerHTML.slice(0, 99))"""
    )
    assert nameless == []
    regions = page.evaluate(
        """[...document.querySelectorAll("section, [role=region]")]
        .filter(one => one.checkVisibility()).map(one => one.getAttribute("aria-label"))"""
    )
    assert len(regions) == len(set(regions)) > 20
    levels = page.evaluate(
        '[...document.querySelectorAll("h1, h2, h3, h4")].map(one => Number(one.tagName[1]))'
    )
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_text_stands_out_from_what_is_behind_it(page):
    page.evaluate('document.querySelectorAll("details").forEach(one => one.open = true)')
    contrasts = page.evaluate(
        """() => {
        const rgb = text => text.match(/[\\d.]+/g).map(Number);
        const linear = c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
        const light = c => 0.2126 * linear(c[0]) + 0.7152 * linear(c[1]) + 0.0722 * linear(c[2]);
        const behind = one => {
          for (; one; one = one.parentElement) {
            const colour = rgb(getComputedStyle(one).backgroundColor);
            if (colour.length < 4 || colour[3] > 0) return colour;
          }
          return [255, 255, 255];
        };
        const found = {};
        const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
        while (walk.nextNode()) {
          const one = walk.currentNode.parentElement;
          if (!walk.currentNode.data.trim() || one.matches("script, style")) continue;
          const style = getComputedStyle(one), paper = behind(one);
          const ink = rgb(one.closest("svg") ? style.fill : style.color);
          if (ink[3] === 0) continue;
          const [a, b] = [light(ink), light(paper)].sort((x, y) => y - x);
          found[`${ink} on ${paper}`] = (a + 0.05) / (b + 0.05);
        }
        return found; }"""
    )
    assert len(contrasts) > 50
    assert {pair: one for pair, one in contrasts.items() if one < 4.5} == {}


def test_it_can_be_printed(page, tmp_path):
    page.emulate_media(media="print")
    for control in (".tools", ".save", "nav", "#tip", ".skip"):
        assert not any(one.is_visible() for one in page.locator(control).all())
    place = tmp_path / "report.pdf"
    page.pdf(path=place, format="A4")
    data = place.read_bytes()
    assert data.startswith(b"%PDF-")
    assert 5 < len(re.findall(rb"/Type\s*/Page\b", data)) < 60
    clipped = page.evaluate(
        """[...document.querySelectorAll(".wide")].filter(one =>
        getComputedStyle(one).overflowX !== "visible").length"""
    )
    assert clipped == 0  # paper does not scroll
