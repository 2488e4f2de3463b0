"""A typical message of each error and warning, and what to do, for the page of errors.

A test finds the line of code that writes each message.
"""

from __future__ import annotations

# Class: (message, what to do).
ERROR_EXAMPLES = {
    "SlideNotFoundError": (
        "/data/a.svs: no such file; check the path",
        "Correct the path. A folder of slides is a cohort: `sp.Cohort.of`, `slideio-pipe export FOLDER`.",
    ),
    "UnsupportedSlideError": (
        "a.tif: pixels are ushort, not 8-bit; export the channels you need as an 8-bit RGB image first",
        "Convert the file. `slideio-pipe doctor` lists the formats that can be opened on this machine.",
    ),
    "CorruptSlideError": (
        "a.svs: pixels cannot be decoded (Premature end of JPEG file); copy the slide again",
        "Copy or download the slide again and compare the sizes. To go on without the damaged tiles: "
        '`on_error="white"`, `--on-error white`.',
    ),
    "MissingResolutionError": (
        "a.svs: no mpp (aperio; no MPP tag); pass slide_mpp=0.25: µm per level-0 pixel, 0.25 is usual for a 40× scan, "
        "0.5 for 20×",
        'Pass `slide_mpp=`, `--slide-mpp`, or a column "mpp" in the cohort; or make views with `mpp="native"`. '
        "The resolution is never guessed.",
    ),
    "ConfigError": (
        "a tile_size of 0; pass 1 or more",
        "Correct the named argument, option or key of the YAML file.",
    ),
    "NoTissueError": (
        "a.svs: no tile has enough tissue; leave it out, or lower min_tissue",
        "Look at the mask (`slideio-pipe tissue a.svs --picture tissue.png`); lower `min_tissue`, choose another "
        "method, pass a mask of your own, or leave the slide out.",
    ),
    "OutputExistsError": (
        "bags/a.bag.zarr: already exists; pass overwrite=True or another path",
        "Pass `overwrite=True` or `--overwrite`, or another path.",
    ),
    "OutputError": (
        "/data/out: the folder cannot be made (Permission denied); choose another one",
        "Check free space, permissions, and whether another run writes to the same folder.",
    ),
    "BagFormatError": (
        "a_patches.h5: coords are not finite; compute them again",
        "The file is not what was expected, or is damaged: write it again.",
    ),
    "MissingExtraError": (
        'h5py is needed and not installed; pip install "slideio-pipe[hdf5]"',
        "Install the extra that the message names.",
    ),
    "ForkError": (
        "libvips was loaded before this process was forked, and its threads did not survive; start workers by spawn: "
        'DataLoader(…, multiprocessing_context="spawn"), get_context("spawn").Pool',
        'Start worker processes with `multiprocessing_context="spawn"`.',
    ),
    "WorkerError": (
        "a.svs: its worker process was killed (SIGKILL), twice",
        "A worker that takes too much memory is killed by the system: use fewer workers or `--memory-limit`. "
        "The run goes on; `--retry` tries the slide again.",
    ),
    "FailedSlidesError": (
        "6 slides failed, 5 may; leave them out of the cohort, or raise max_failures",
        "`error.exceptions` has the error of each slide, with its remedy.",
    ),
    "EstimatedResolutionWarning": (
        "a.svs: none stated; using 0.5 µm, estimated from the 20× objective",
        "Pass `slide_mpp=` if you know the exact value.",
    ),
    "ImplausibleResolutionWarning": (
        "a.svs: slide_mpp=1 makes the slide 100 mm long, glass has 76; is it a whole mount on large glass?",
        "Check the value: µm per pixel of level 0, not of a coarser level.",
    ),
    "EmptyTissueWarning": (
        "a.svs: no tile has 50% tissue; lower min_tissue",
        "Look at the mask; lower `min_tissue`, or make tiles smaller.",
    ),
    "AlignedGridWarning": (
        "a.svs: grid aligned to the stored tiles with tile_size 240 in place of 256",
        "Nothing, if this tile size suits; without `align=True` the tile size stays and pixels are encoded again.",
    ),
    "SkippedWarning": (
        "a.svs: 12 of 4,000 stored tiles of level 0 are empty in the file: they are white",
        "Look whether the named slides or tiles matter; the message says what was left out.",
    ),
    "LeftOutLevelsWarning": (
        "a.zarr: levels 2, 3 are not used: they start elsewhere than level 0",
        "Nothing: finer levels are read in their place, which takes longer.",
    ),
    "IncompleteSlideWarning": (
        "a.dcm: the largest of its files, b.dcm (5000 × 4000 px), is itself resampled (DICOM ImageType): the file of "
        "the full resolution seems to be missing",
        "Copy all files of the series into one folder.",
    ),
    "PartsWarning": (
        "slides: no slides in it; 2 of its folders have 40",
        "Check the number of slides that the message states.",
    ),
    "ClusterWarning": (
        "the worker tcp://node7:4001 is not used: it has slideio_pipe 0.1.0 instead of 0.2.0",
        "Install the same version on all machines; give them the same path to slides and output.",
    ),
    "AlikeLabelsWarning": (
        "label 'tumuor' (1×) may be 'tumour' (40×) misspelt",
        "Correct the label, or ignore the warning if both are classes.",
    ),
    "NumericIdsWarning": (
        'table.xlsx: the ids in the column "PATIENT" are stored as numbers, which have no leading zeros (71, 1234); if '
        "your ids have them, store the column as text",
        "If ids begin with zeros, format the column as text in Excel and write them again; read a CSV with "
        "`dtype=str` in pandas.",
    ),
    "NormalizationMovedWarning": (
        "the end of the transform (ToDtype, Normalize, ToTensor) runs on the device: tiles are normalised there, "
        "tile by tile",
        "Nothing: `stream(bag, device=…)` without `normalize=` does what the end says. To silence it, leave the end "
        "out and pass `normalize=`.",
    ),
    "PartNameWarning": (
        'her-package 1.0 brings the layout "clam"; the one of slideio-pipe is used',
        "Ask for another name in that package, or pass its object or import path, `her_package:Clam`. "
        "`slideio-pipe doctor` lists what installed packages bring.",
    ),
    "UnmatchedWarning": (
        "slides.csv: 1 of 40 values of patient are not in clini.xlsx: p7",
        "Check whether the ids are written alike in both. `warning.names` are all of them.",
    ),
    "MissingCellsWarning": (
        "3 cells of the column \"label\" are 'None', which counts as no label; if it is one, rename it",
        "Rename the class if it is one.",
    ),
    "OutsideSlideWarning": (
        "a.svs: 120 of 400 points and boxes are outside the slide, 2,048×1,536 px at level 0; they reach from "
        "(300, 280) to (2,310, 1,790)",
        'Check that they are of this slide; pass `frame="level0"`, `frame="qupath"` or `mpp=` where they were read.',
    ),
    "RepeatedDrawsWarning": (
        "a is read again in epoch 0, with the tiles and transforms that were drawn before; call "
        "dataset.set_epoch(epoch) before each epoch",
        "Call `dataset.set_epoch(epoch)` before each epoch, or use `sp.BagLoader`, which does.",
    ),
    "EncoderSettingsWarning": (
        "uni: config.json of MahmoodLab/UNI says bicubic; used is bilinear (slideio-pipe encoders uni says why)",
        "Nothing, if you follow the authors; otherwise pass `interpolation=`, `pooling=` or `normalize=` yourself.",
    ),
    "UpsamplingWarning": (
        "a.svs: 0.25 µm wanted of a slide scanned at 0.5 µm; its pixels are interpolated",
        "Choose an mpp that the slide has.",
    ),
}
