import pytest

from rayhook.inference.training.evaluate import evaluate, evaluate_package, to_evaluations
from rayhook.inference.training.evaluated import write_evaluation
from rayhook.inference.training.evaluation_report import read_report
from rayhook.inference.training.evaluation_rows import open_package, recipe_of

ROUNDS = 100


@pytest.fixture(scope="module")
def rater(models):
    return open_package("ct-lung-nodule", models)


@pytest.fixture(scope="module")
def evaluated(rater, nodules, engine_cache):
    return evaluate(rater, recipe_of("ct-lung-nodule"), nodules, None, cache_dir=engine_cache, rounds=ROUNDS)


@pytest.fixture(scope="module")
def report(evaluated):
    return evaluated.report


def test_nodules_are_counted_first(report):
    assert (report.unit, report.count, report.patients, report.positives) == ("nodule", 18, 9, 9)


def test_crops_are_counted_beside_them(report):
    assert [(other.unit, other.count) for other in report.other_units] == [("crop", 36)]


@pytest.mark.parametrize(
    "name",
    [
        "auc",
        "sensitivity",
        "specificity",
        "ppv",
        "npv",
        "ece",
        "brier",
        "accuracy",
        "abstention",
        "declined",
        "unsure",
        "sensitivity_at_specificity_0.85",
        "pointing",
        "iou",
    ],
)
def test_a_figure_is_given_with_its_interval(report, name):
    found = report.estimates[name]
    assert 0 <= found.low <= found.value <= found.high <= 1


def test_predictive_values_are_told_at_the_prevalences_of_the_data_set(report):
    assert [row.prevalence for row in report.prevalence_table] == [0.01, 0.05, 0.2]


def test_the_threshold_is_that_of_the_manifest(report, rater):
    assert report.threshold.value == rater.manifest.labels[0].threshold


def test_the_report_says_that_nothing_was_chosen_here(report):
    assert "Nothing was chosen on these rows" in report.threshold.source


def test_diameter_is_the_baseline_and_told_to_be_perfect(report):
    assert [(one.name, one.auc.value) for one in report.baselines] == [
        ("diameter, median of the readers", 1.0)
    ]


def test_subgroups_are_those_of_the_columns(report):
    assert {part.name for part in report.subgroups} == {"diameter", "readers"}


def test_the_sanity_test_of_the_heatmap_is_made(report):
    assert [one.part for one in report.explanation.randomised] == ["head", "head and last stage"]


def test_the_limits_are_those_of_the_data_set(report):
    assert "not pathology" in report.limits[0]


def test_the_report_is_read_back(report):
    assert read_report(report.to_json()) == report


def test_a_manifest_is_told_of_the_whole_of_sizes_and_of_crops(report):
    told = [(one.unit, one.subset.split()[0]) for one in to_evaluations(report)]
    assert (told[0], told[-1], ("nodule", "diameter") in told) == (("nodule", "all"), ("crop", "all"), True)


def test_the_folder_holds_report_page_card_and_pictures(evaluated, rater, tmp_path):
    write_evaluation(evaluated, rater.manifest, tmp_path)
    pictures = ["examples", "reliability", "risk_coverage", "roc", "scores", "subgroups"]
    texts = {"MODEL_CARD.md", "report.html", "report.json"}
    assert {path.name for path in tmp_path.iterdir()} == texts | {f"{name}.png" for name in pictures}


@pytest.fixture(scope="module")
def proposed(models, nodules, engine_cache):
    finder = open_package("ct-lung-nodule-finder", models)
    recipe = recipe_of("ct-lung-nodule-finder")
    return evaluate(finder, recipe, nodules, None, cache_dir=engine_cache, rounds=ROUNDS)


def test_a_finder_is_counted_by_nodules_of_every_rating(proposed):
    assert (proposed.report.unit, proposed.report.count) == ("nodule", 27)


@pytest.mark.parametrize(
    "name",
    ["sensitivity", "sensitivity_any_slice", "candidates_per_view", "false_per_80_cm2", "in_searched_area"],
)
def test_a_finders_figure_is_given_with_its_interval(proposed, name):
    found = proposed.report.estimates[name]
    assert found.low <= found.value <= found.high


def test_a_finder_has_no_figure_of_a_classifier(proposed):
    assert not {"auc", "specificity", "ece"} & proposed.report.estimates.keys()


def test_more_false_candidates_never_cost_sensitivity(proposed):
    found = proposed.report.estimates
    values = [found[f"sensitivity_at_{rate:g}_false_per_80_cm2"].value for rate in (0.25, 0.5, 1, 2, 4)]
    assert values == sorted(values)


def test_at_most_four_candidates_a_view_are_counted(proposed):
    assert proposed.report.estimates["candidates_per_view"].value <= 4


def test_no_threshold_finds_more_than_the_four_strongest(proposed):
    found = proposed.report.estimates
    assert found["sensitivity_of_four"].value >= found["sensitivity"].value


def test_a_finders_subgroups_tell_the_rating(proposed):
    assert {"diameter", "readers", "rating"} == {part.name for part in proposed.report.subgroups}


def test_a_finders_pictures_are_drawn(proposed):
    assert set(proposed.draw()) == {"froc", "subgroups"}


@pytest.mark.dataset
def test_candidates_are_counted_in_the_slices_of_a_series(
    models, nodules, engine_cache, lidc_dicom, tmp_path
):
    for path in sorted(lidc_dicom.rglob("*.dcm"))[20:26]:
        (tmp_path / path.name).symlink_to(path)
    finder = open_package("ct-lung-nodule-finder", models)
    recipe = recipe_of("ct-lung-nodule-finder")
    report = evaluate(
        finder, recipe, nodules, "train", cache_dir=engine_cache, rounds=ROUNDS, series=tmp_path
    ).report
    assert (report.other_units[-1].count, "candidates_per_slice" in report.estimates) == (6, True)


@pytest.fixture(scope="module")
def some_slices(mri_lgg, tmp_path_factory):
    """A twelfth of the real slices held out, with a split of another name."""
    folder = tmp_path_factory.mktemp("some") / "renamed"
    folder.mkdir()
    for name in ("images", "masks"):
        (folder / name).symlink_to(mri_lgg / name)
    header, *rows = (mri_lgg / "labels.csv").read_text().splitlines()
    held_out = [row.removesuffix("val") + "test" for row in rows if row.endswith(",val")][::12]
    (folder / "labels.csv").write_text("\n".join([header, *held_out]))
    return folder


@pytest.mark.dataset
def test_the_bundled_model_is_told_by_slice_and_series(flair, some_slices, engine_cache):
    recipe = recipe_of("mri-flair-tumour")
    found = evaluate_package(flair, recipe, some_slices, None, cache_dir=engine_cache, rounds=ROUNDS)
    told = [(one.unit, one.count) for one in to_evaluations(found) if one.subset == "all"]
    assert (told, found.split, found.estimates["auc"].value > 0.9) == (
        [("slice", 43), ("series", 14)],
        "test",
        True,
    )
