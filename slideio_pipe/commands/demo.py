"""``slideio-pipe demo``: two slides, a cohort, or a study to train on."""

from __future__ import annotations

from pathlib import Path

from slideio_pipe.commands import options
from slideio_pipe.commands.terminal import called_as, print_json, reported, say, shown
from slideio_pipe.errors import ConfigError


@reported
def demo(
    folder: options.DemoFolder = Path("slideio-pipe-demo"),
    cohort: options.DemoCohort = False,
    mil: options.DemoMil = False,
    patients: options.DemoPatients = False,
    laboratory: options.DemoLaboratory = "usual",
    device: options.Device = None,
    as_json: options.Json = False,
) -> None:
    """Try the package in about a minute: make two slides, export their bags, stream them to a device, draw a picture.

    With --cohort: make 24 small slides, three of them broken, export them with two workers, convert the bags, and
    write a report. The three failures are intended, and the exit code is 0.

    With --mil: make 40 slides, half of them with a lesion of 2 % of the tissue, and a table of targets for a model; it
    takes two minutes. The presets mil-… train on them. With --laboratory, make the test slides only, stained
    as in another laboratory.

    With --patients: make about 75 small slides of 30 patients, scanned at two resolutions, and a table with one label
    per patient; it takes a minute. Half of the patients have a lesion, in one of their slides.

    Example: [bold]slideio-pipe demo[/]

    A cohort: [bold]slideio-pipe demo --cohort[/]
    """
    kinds = {"--cohort": cohort, "--mil": mil, "--patients": patients}
    chosen = [name for name, is_chosen in kinds.items() if is_chosen]
    if len(chosen) > 1:
        raise ConfigError(f"{' and '.join(chosen)} are both given", remedy="give one of them")
    if laboratory != "usual" and not mil:
        raise ConfigError("--laboratory without --mil", remedy="add --mil: the other demos are of one laboratory")
    if chosen and device is not None:
        raise ConfigError(f"--device with {chosen[0]}", remedy="leave it out: nothing is streamed")
    if patients:
        demo_patients(folder, as_json=as_json)
        return
    if mil:
        demo_mil(folder, laboratory, as_json=as_json)
        return
    if cohort:
        demo_cohort(folder, as_json=as_json)
        return
    from slideio_pipe.commands.demos.slides import run_demo

    if as_json:
        print_json(run_demo(folder, device=device, say=lambda line: None, progress=False))
        return
    report = run_demo(folder, device=device, say=say)
    bag = folder / Path(report["slides"][1]["bag"]).name
    called = called_as()
    say("next:", style="bold")
    say(f"  {called} info {folder}/tumour.svs --mpp 0.5", copied=True)
    say(f"  {called} export YOUR_SLIDE.svs --out bags/", copied=True)
    say(f'  in Python: import slideio_pipe as sp; bag = sp.open_bag("{bag}")', copied=True)


def demo_cohort(folder: Path, *, as_json: bool) -> None:
    """Run the demo of a cohort and print the next steps."""
    from slideio_pipe.commands.demos.cohort import run_cohort_demo

    if as_json:
        print_json(run_cohort_demo(folder, say=lambda line: None, progress=False))
        return
    done = run_cohort_demo(folder, say=say)
    called = called_as()
    say("next:", style="bold")
    say(f"  open {done['report']} in a browser")
    say(f"  {called} split {folder}/cohort.csv --folds 3 --out {folder}/folds.csv", copied=True)
    say(f"  {called} export YOUR_COHORT.csv --out bags/ --workers 4", copied=True)


def demo_mil(folder: Path, laboratory: str, *, as_json: bool) -> None:
    """Make the study for a training and print the next steps."""
    from slideio_pipe.cohort.cohort import Cohort
    from slideio_pipe.commands.demos.study import write_mil_cohort
    from slideio_pipe.progress import reporting

    with reporting(shown(as_json), "slides") as report:
        # Only test slides in another stain: tissue of the training in any stain would give optimistic results.
        split = None if laboratory == "usual" else "test"
        manifest = write_mil_cohort(folder, laboratory=laboratory, split=split, progress=report)
    slides = Cohort.of(manifest)
    if as_json:
        print_json({"cohort": str(manifest), "slides": len(slides), "lesions": str(folder / "lesions")})
        return
    called = called_as()
    say(f"{len(slides)} slides: {manifest}")
    say(f"outlines of the lesions: {folder}/lesions/*.geojson")
    say("next:", style="bold")
    if split is not None:
        say(f"  {called} predict run/ {manifest} --out seen-{laboratory}/", copied=True)
        say("    run/: trained on usual stains")
        return
    say(f"  {called} train --config mil-end-to-end --cohort {manifest} --out run/", copied=True)
    say("    three to seven minutes on two cores")
    say(f"  {called} predict run/ {folder}/slides/s13.svs --out seen/", copied=True)
    say(f"  {called} demo --mil --laboratory faded --out {folder}-faded/", copied=True)
    say("    the test slides with another stain")


def demo_patients(folder: Path, *, as_json: bool) -> None:
    """Make the study of patients and print the next steps."""
    from slideio_pipe.cohort.cohort import Cohort
    from slideio_pipe.cohort.patients import by_patient
    from slideio_pipe.commands.demos.patients import write_patient_cohort
    from slideio_pipe.progress import reporting

    with reporting(shown(as_json), "slides") as report:
        manifest = write_patient_cohort(folder, progress=report)
    slides = Cohort.of(manifest)
    patients = by_patient(slides)
    if as_json:
        print_json({"cohort": str(manifest), "slides": len(slides), "patients": len(patients)})
        return
    called = called_as()
    say(f"{len(patients)} patients with {len(slides)} slides: {manifest}")
    say("next:", style="bold")
    say(f"  {called} train --config mil-end-to-end --cohort {manifest} --set unit=patient --out run/", copied=True)
    say(f"  {called} export {manifest} --unit patient --out bags/", copied=True)
