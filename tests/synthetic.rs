//! The drawn data set keeps its promises: true captions, known flaws in exact numbers, one seed one set of bytes.

#[path = "synthetic/flaws.rs"]
mod flaws;
#[path = "synthetic/grammar.rs"]
mod grammar;
#[path = "synthetic/planting.rs"]
mod planting;

use std::{collections::BTreeSet, fs, path::Path};

use alchemist_engine::{
    data::{
        ColumnNames, Preprocess,
        corruption::{
            Flaw, FlawShares, Neighbors, corrupt, plan,
            plant::{PlantSettings, plant},
            sources,
        },
        synthetic::{DataSetSettings, draw_scene, write_data_set},
    },
    files::LEFTOVER,
    interrupt::Interrupt,
};
use sha2::{Digest, Sha256};

const SIDE: usize = 64;

fn settings(train: usize, validation: usize, seed: u64) -> DataSetSettings {
    DataSetSettings { train, validation, side: SIDE, shares: FlawShares::default(), seed }
}

/// Mean over the channels of the variance over the pixels.
fn variance(rgb: &[u8]) -> f64 {
    let pixels = (rgb.len() / 3) as f64;
    (0..3)
        .map(|channel| {
            let values = || rgb[channel..].iter().step_by(3).map(|&byte| f64::from(byte));
            let mean = values().sum::<f64>() / pixels;
            values().map(|value| (value - mean) * (value - mean)).sum::<f64>() / pixels
        })
        .sum::<f64>()
        / 3.0
}

/// Mean squared difference of neighbors in a row: the energy at high frequencies.
fn roughness(rgb: &[u8], side: usize) -> f64 {
    let step = |at: usize| f64::from(rgb[at]) - f64::from(rgb[at + 3]);
    let starts = (0..side).flat_map(|row| (0..(side - 1) * 3).map(move |at| row * side * 3 + at));
    starts.map(|at| step(at) * step(at)).sum::<f64>() / (side * (side - 1) * 3) as f64
}

/// Correlation of two images' bytes.
fn correlation(left: &[u8], right: &[u8]) -> f64 {
    let mean = |bytes: &[u8]| bytes.iter().map(|&byte| f64::from(byte)).sum::<f64>() / bytes.len() as f64;
    let (left_mean, right_mean) = (mean(left), mean(right));
    let (mut product, mut left_square, mut right_square) = (0.0, 0.0, 0.0);
    for (&a, &b) in left.iter().zip(right) {
        let (a, b) = (f64::from(a) - left_mean, f64::from(b) - right_mean);
        product += a * b;
        left_square += a * a;
        right_square += b * b;
    }
    product / (left_square * right_square).sqrt()
}

fn words(caption: &str) -> BTreeSet<&str> {
    caption.split(' ').map(|word| word.trim_end_matches(',')).collect()
}

#[test]
fn scenes_are_the_same_bits_everywhere() {
    let mut digest = Sha256::new();
    for index in 0..40 {
        let scene = draw_scene(11, index, SIDE);
        digest.update(&scene.rgb);
        digest.update(scene.caption.as_bytes());
    }
    let digest: String = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(
        digest, "cc23c11904d47136796cf4387b7fffb48752ed1105fece4474af8c79cbf069c0",
        "the drawing has changed; the demo's published figures go with it"
    );
}

#[test]
fn scenes_vary_with_seed_and_index_and_captions_do_not_depend_on_the_side() {
    let scenes: Vec<_> = (0..300).map(|index| draw_scene(3, index, 32)).collect();
    let images: BTreeSet<_> = scenes.iter().map(|scene| &scene.rgb).collect();
    assert_eq!(images.len(), 300);
    let captions: BTreeSet<_> = scenes.iter().map(|scene| scene.caption.as_str()).collect();
    assert!(captions.len() > 280, "only {} different captions in 300", captions.len());
    let vocabulary: BTreeSet<_> = captions.iter().flat_map(|caption| words(caption)).collect();
    assert!((60..140).contains(&vocabulary.len()), "{} words: {vocabulary:?}", vocabulary.len());
    for (index, scene) in scenes.iter().enumerate() {
        assert_eq!(scene.rgb.len(), 32 * 32 * 3);
        assert!(variance(&scene.rgb) > 4.0, "scene {index} shows nothing: {}", scene.caption);
    }
    assert!(scenes[0] != draw_scene(4, 0, 32), "the seed has no effect");
}

/// Scenes that are one thing on a colorless background: the caption's color is the image's.
#[test]
fn captions_name_the_colors_that_are_there() {
    const SIDE: usize = 12;
    let mut found = [0; 3];
    for index in 0..60_000 {
        let scene = draw_scene(5, index, SIDE);
        let words: Vec<_> = scene.caption.split(' ').collect();
        let [article, rest @ ..] = words.as_slice() else { panic!("scene {index} has no caption") };
        let rest = rest.strip_prefix(&["large"]).unwrap_or(rest);
        let [color, shape, .., background, "background"] = rest else { continue };
        let Some(channel) = ["red", "green", "blue"].iter().position(|name| name == color) else { continue };
        if *article != "a"
            || !["circle", "square", "triangle", "heart", "diamond"].contains(shape)
            || !["white", "grey", "black"].contains(background)
            || words.iter().any(|word| ["of", "above", "below", "and", "fading"].contains(word))
        {
            continue;
        }
        found[channel] += 1;
        let stands_out = |pixel: &&[u8]| {
            let others = (0..3).filter(|&other| other != channel).map(|other| i32::from(pixel[other]));
            i32::from(pixel[channel]) > others.max().unwrap_or(0) + 30
        };
        let share = scene.rgb.chunks_exact(3).filter(stands_out).count() as f64 / (SIDE * SIDE) as f64;
        assert!(share > 0.04, "scene {index}, {}: {share}", scene.caption);
    }
    assert!(found.iter().all(|&count| count >= 2), "too few such scenes: {found:?}");
}

#[test]
fn a_plan_has_exact_counts_in_a_seeded_order() {
    let shares = FlawShares::default();
    let flaws = plan(2100, &shares, 1).unwrap();
    let count = |flaw| flaws.iter().filter(|&&found| found == flaw).count();
    let counts = Flaw::ALL.map(count);
    assert_eq!(counts[..8], [1428, 126, 168, 126, 147, 105, 0, 0]);
    assert!(counts[8..].iter().all(|&count| count == 0));
    assert_eq!(counts[0], (0.68 * 2100.0) as usize);
    assert_eq!(flaws, plan(2100, &shares, 1).unwrap());
    assert_ne!(flaws, plan(2100, &shares, 2).unwrap());
    let first_half = flaws[..1050].iter().filter(|&&flaw| flaw != Flaw::Clean).count();
    assert!((280..392).contains(&first_half), "{first_half} of 672 flaws lie in the first half");
    assert!(plan(500, &FlawShares::NONE, 1).unwrap().iter().all(|&flaw| flaw == Flaw::Clean));
    assert!(plan(0, &shares, 1).unwrap().is_empty());
}

#[test]
fn impossible_shares_are_refused_in_one_sentence() {
    for plain in [-0.1, 1.5, f64::NAN] {
        let message = plan(100, &FlawShares::of(&[(Flaw::Plain, plain)]), 0).unwrap_err().to_string();
        assert!(message.contains("`plain`") && message.contains("between 0 and 1"), "{message}");
    }
    let shares = FlawShares::of(&[(Flaw::Plain, 0.6), (Flaw::Noise, 0.6)]);
    let message = plan(100, &shares, 0).unwrap_err().to_string();
    assert!(message.contains("none of 100 records clean"), "{message}");
}

#[test]
fn wrong_captions_differ_and_duplicates_copy_clean_records() {
    let captions: Vec<_> = (0..600).map(|index| draw_scene(9, index, 8).caption).collect();
    let flaws = plan(600, &FlawShares::default(), 9).unwrap();
    let sources = sources(&flaws, &captions, &Neighbors::default(), 9).unwrap();
    let mut shared = 0.0;
    for (record, (&flaw, &source)) in flaws.iter().zip(&sources).enumerate() {
        assert_eq!(source.is_some(), flaw.needs_source());
        match (flaw, source) {
            (Flaw::Duplicate, Some(source)) => {
                assert_eq!(flaws[source], Flaw::Clean);
                assert_ne!(source, record);
            }
            (Flaw::WrongCaption, Some(source)) => {
                let (own, other) = (words(&captions[record]), words(&captions[source]));
                assert_ne!(own, other);
                let jaccard = own.intersection(&other).count() as f64 / own.union(&other).count() as f64;
                assert!(jaccard <= 0.5, "`{}` is nearly `{}`", captions[record], captions[source]);
                shared += jaccard / 42.0;
            }
            _ => {}
        }
    }
    assert!(shared < 0.4, "wrong captions share {shared} of their words");
}

#[test]
fn a_wrong_caption_is_found_among_nearly_equal_ones_or_refused() {
    let flaws = [Flaw::WrongCaption, Flaw::Clean, Flaw::Clean, Flaw::Clean];
    let sources = |flaws: &[Flaw], captions: &[&str]| sources(flaws, captions, &Neighbors::default(), 0);
    let found = sources(&flaws, &["A dog.", "a dog", "the dog, a", "a  DOG"]).unwrap();
    assert_eq!(found, [Some(2), None, None, None]);
    let message = sources(&flaws, &["A dog.", "a dog", "dog a", "a  DOG"]).unwrap_err().to_string();
    assert!(message.contains("all captions are the same"), "{message}");
    let message = sources(&flaws, &["one"]).unwrap_err().to_string();
    assert!(message.contains("4 flaws for 1 captions"), "{message}");
    assert!(sources(&[Flaw::Duplicate], &["alone"]).is_err());
}

#[test]
fn flaws_of_images_do_what_they_say() {
    for index in 0..60 {
        let clean = draw_scene(21, index, SIDE).rgb;
        let corrupted = |flaw, seed| {
            let mut rgb = clean.clone();
            corrupt(&mut rgb, SIDE, SIDE, flaw, seed, index).unwrap();
            rgb
        };
        let plain = corrupted(Flaw::Plain, 0);
        assert!(variance(&plain) < 4.0, "plain: {}", variance(&plain));
        let noise = corrupted(Flaw::Noise, 0);
        assert!(variance(&noise) > 1500.0, "noise: {}", variance(&noise));
        let kept = correlation(&clean, &noise).abs();
        assert!(kept < 0.5, "noise leaves a correlation of {kept}");
        let blurred = corrupted(Flaw::Blur, 0);
        let (before, after) = (roughness(&clean, SIDE), roughness(&blurred, SIDE));
        assert!(after < 0.2 * before + 1.0, "blur: {before} became {after}");
        let mean = |rgb: &[u8]| rgb.iter().map(|&byte| f64::from(byte)).sum::<f64>() / rgb.len() as f64;
        assert!((mean(&blurred) - mean(&clean)).abs() < 12.0, "blur keeps the brightness");
        let kept = |flaw: &Flaw| !flaw.corrupts_image() && (!flaw.copies_image() || *flaw == Flaw::Duplicate);
        for flaw in Flaw::ALL.into_iter().filter(kept) {
            assert!(corrupted(flaw, 0) == clean, "{flaw} changes the image");
        }
        let changed = |rgb: &[u8]| {
            let pixels = clean.chunks_exact(3).zip(rgb.chunks_exact(3));
            let far = |(own, other): &(&[u8], &[u8])| {
                own.iter().zip(*other).any(|(own, other)| own.abs_diff(*other) > 8)
            };
            pixels.filter(far).count() as f64 / (SIDE * SIDE) as f64
        };
        let ruined = changed(&corrupted(Flaw::Jpeg, 0));
        assert!(ruined > 0.15, "JPEG changes {ruined} of the pixels");
        let marked = changed(&corrupted(Flaw::Watermark, 0));
        assert!((0.04..0.6).contains(&marked), "the watermark changes {marked} of the pixels");
        for flaw in [Flaw::Plain, Flaw::Noise, Flaw::Blur, Flaw::Jpeg, Flaw::Watermark] {
            assert!(corrupted(flaw, 0) == corrupted(flaw, 0), "{flaw} is not fixed by its seed");
            // Blur and JPEG come in few strengths, so that two seeds may agree on one.
            assert!(
                matches!(flaw, Flaw::Blur | Flaw::Jpeg) || corrupted(flaw, 0) != corrupted(flaw, 1),
                "{flaw} ignores its seed"
            );
        }
    }
}

#[test]
fn blur_comes_in_several_strengths() {
    let clean = draw_scene(21, 3, SIDE).rgb;
    let strengths: BTreeSet<_> = (0..20)
        .map(|seed| {
            let mut rgb = clean.clone();
            corrupt(&mut rgb, SIDE, SIDE, Flaw::Blur, seed, 0).unwrap();
            rgb
        })
        .collect();
    assert!(strengths.len() >= 3, "{} strengths", strengths.len());
}

#[test]
fn flaws_take_images_of_any_shape() {
    for (width, height) in [(1, 1), (1, 9), (200, 3), (17, 31), (0, 0)] {
        for flaw in Flaw::ALL {
            let mut rgb = vec![90; width * height * 3];
            corrupt(&mut rgb, width, height, flaw, 0, 0).unwrap();
            if flaw == Flaw::Blur {
                assert!(rgb.iter().all(|&byte| byte == 90), "a blurred plain image stays as it is");
            }
        }
    }
    let message = corrupt(&mut [0; 10], 2, 2, Flaw::Noise, 0, 0).unwrap_err().to_string();
    assert!(message.contains("10 bytes are not an image of 2×2 pixels"), "{message}");
}

#[test]
fn names_of_flaws_are_read_back() {
    let names = [
        "clean",
        "plain",
        "noise",
        "blur",
        "wrong_caption",
        "duplicate",
        "jpeg",
        "watermark",
        "neighbor_caption",
        "truncated_caption",
        "generic_caption",
        "boilerplate_caption",
        "foreign_caption",
        "translated_caption",
        "wrong_attribute",
        "wrong_count",
        "wrong_position",
        "swapped_subjects",
        "cropped_duplicate",
        "flipped_duplicate",
        "recompressed_duplicate",
    ];
    assert_eq!(names.len(), Flaw::ALL.len());
    for (flaw, name) in Flaw::ALL.into_iter().zip(names) {
        assert_eq!(flaw.to_string(), name);
        assert_eq!(name.parse::<Flaw>().unwrap(), flaw);
        assert_eq!(serde_json::to_value(flaw).unwrap(), name);
    }
    assert!("blurred".parse::<Flaw>().unwrap_err().to_string().contains("wrong_caption"));
}

#[test]
fn flaws_are_planted_in_any_corpus_and_recorded() {
    let folder = tempfile::tempdir().unwrap();
    let shares = FlawShares::NONE;
    let drawn = DataSetSettings { train: 100, validation: 1, side: 40, shares, seed: 6 };
    let data = write_data_set(&folder.path().join("data"), &drawn).unwrap();
    // A corpus with columns of its own, and an image that cannot be read.
    let table = fs::read_to_string(&data.train_csv).unwrap();
    let table = table.replace(",flaw,", ",source,").replace(",clean,", ",\"web, 2020\",");
    fs::write(&data.train_csv, table).unwrap();
    fs::write(folder.path().join("data/train/000017.png"), "no image").unwrap();
    let plant_into = |out: &str, seed: u64, overwrite: bool| {
        let settings = PlantSettings {
            corpus: data.train_csv.clone(),
            format: None,
            columns: ColumnNames::default(),
            skip_bad_rows: false,
            out: folder.path().join(out),
            preprocess: Preprocess::default_for(32),
            shares: FlawShares::PLANTED,
            category_column: None,
            workers: 2,
            seed,
            overwrite,
        };
        plant(&settings, &Interrupt::default(), &mut ())
    };
    let planted = plant_into("planted", 1, false).unwrap();
    let mut reader = csv::Reader::from_path(&planted.table).unwrap();
    let header = ["id", "image_save_path", "caption", "source", "duplicate_of", "flaw", "flaw_source"];
    assert_eq!(reader.headers().unwrap(), header.to_vec());
    let rows: Vec<_> = reader.records().map(Result::unwrap).collect();
    let lost = 100 - rows.len();
    assert!(lost >= 1 && planted.failed == lost, "{lost} rows are missing, {} failed", planted.failed);
    assert!(rows.iter().all(|row| &row[0] != "17" && &row[3] == "web, 2020"));
    let original = |id: &str| draw_scene(6, id.parse().unwrap(), 40).caption;
    let image = |id: &str| {
        let row = rows.iter().find(|row| &row[0] == id).unwrap();
        fs::read(folder.path().join("planted").join(&row[1])).unwrap()
    };
    for row in &rows {
        let (flaw, source): (Flaw, &str) = (row[5].parse().unwrap(), &row[6]);
        assert_eq!(flaw.needs_source(), !source.is_empty());
        let told = if flaw.needs_source() { source } else { &row[0] };
        assert_eq!(row[2], original(told), "{flaw}");
        if flaw == Flaw::Duplicate && rows.iter().any(|row| &row[0] == source) {
            assert!(image(&row[0]) == image(source));
        }
    }
    let counted: usize = planted.counts.iter().map(|(_, count)| count).sum();
    assert_eq!(counted, rows.len());
    assert_eq!(planted.counts.len(), 8, "{:?}", planted.counts);
    // The same again; another seed; and what is refused.
    plant_into("again", 1, false).unwrap();
    let (planted, again) = (folder.path().join("planted"), folder.path().join("again"));
    assert!(contents(&planted) == contents(&again));
    assert!(plant_into("planted", 2, false).unwrap_err().to_string().contains("--overwrite"));
    plant_into("again", 2, true).unwrap();
    assert!(contents(&planted) != contents(&again));
    let settings = PlantSettings {
        corpus: planted.join("corpus.csv"),
        format: None,
        columns: ColumnNames::default(),
        skip_bad_rows: false,
        out: folder.path().join("twice"),
        preprocess: Preprocess::default_for(32),
        shares: FlawShares::PLANTED,
        category_column: None,
        workers: 2,
        seed: 0,
        overwrite: false,
    };
    let message = plant(&settings, &Interrupt::default(), &mut ()).unwrap_err().to_string();
    assert!(message.contains("column `flaw` already exists"), "{message}");
}

/// Every file under a folder with its bytes.
fn contents(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).unwrap().to_string_lossy().into_owned();
                files.push((name, fs::read(&path).unwrap()));
            }
        }
    }
    files.sort();
    files
}

#[test]
fn the_data_set_on_disk_is_what_the_tables_say() {
    let folder = tempfile::tempdir().unwrap();
    let data_set = write_data_set(folder.path(), &settings(200, 30, 6)).unwrap();
    let mut reader = csv::Reader::from_path(&data_set.train_csv).unwrap();
    assert_eq!(reader.headers().unwrap(), vec!["id", "image_save_path", "caption", "flaw", "duplicate_of"]);
    let rows: Vec<_> = reader.records().map(Result::unwrap).collect();
    assert_eq!(rows.len(), 200);
    let image = |row: &csv::StringRecord| image::open(folder.path().join(&row[1])).unwrap().into_rgb8();
    let mut seen = [0; 6];
    for (index, row) in rows.iter().enumerate() {
        let flaw: Flaw = row[3].parse().unwrap();
        seen[flaw as usize] += 1;
        assert_eq!(row[0], index.to_string());
        let scene = draw_scene(6, index as u64, SIDE);
        let shown = image(row);
        assert_eq!(shown.dimensions(), (64, 64));
        assert_eq!(flaw == Flaw::Duplicate, !row[4].is_empty());
        match flaw {
            Flaw::Clean => assert!(shown.as_raw() == &scene.rgb && row[2] == scene.caption, "row {index}"),
            Flaw::WrongCaption => {
                assert!(shown.as_raw() == &scene.rgb, "row {index}");
                assert_ne!(row[2], scene.caption);
            }
            Flaw::Duplicate => {
                let original = &rows[row[4].parse::<usize>().unwrap()];
                assert_eq!((&original[2], &original[3]), (&row[2], "clean"));
                assert!(image(original) == shown, "row {index}");
            }
            flaw => {
                assert!(flaw.corrupts_image(), "row {index} has {flaw}");
                assert!(shown.as_raw() != &scene.rgb, "row {index}");
                assert_eq!(row[2], scene.caption);
            }
        }
    }
    assert_eq!(seen, [136, 12, 16, 12, 14, 10]);
    let mut reader = csv::Reader::from_path(&data_set.validation_csv).unwrap();
    let validation: Vec<_> = reader.records().map(Result::unwrap).collect();
    assert_eq!(validation.len(), 30);
    for (index, row) in validation.iter().enumerate() {
        let scene = draw_scene(6, 200 + index as u64, SIDE);
        assert_eq!((row[0].to_string(), &row[3]), ((200 + index).to_string(), "clean"));
        assert!(image(row).as_raw() == &scene.rgb && row[2] == scene.caption, "validation row {index}");
    }
    let left_over = contents(folder.path()).into_iter().find(|(name, _)| name.contains(LEFTOVER));
    assert!(left_over.is_none());
}

#[test]
fn one_seed_gives_the_same_files_on_one_and_on_two_threads() {
    let write = |threads: usize, seed: u64| {
        let folder = tempfile::tempdir().unwrap();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| write_data_set(folder.path(), &settings(120, 20, seed))).unwrap();
        contents(folder.path())
    };
    let one = write(1, 2);
    assert_eq!(one.len(), 142);
    assert!(one == write(2, 2), "1 and 2 threads differ");
    assert!(one != write(2, 3), "the seed has no effect");
}

#[test]
fn a_data_set_written_twice_into_one_folder_is_the_second() {
    let (once, twice) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write_data_set(twice.path(), &settings(40, 5, 1)).unwrap();
    write_data_set(twice.path(), &settings(40, 5, 2)).unwrap();
    write_data_set(once.path(), &settings(40, 5, 2)).unwrap();
    assert!(contents(once.path()) == contents(twice.path()));
}

#[test]
fn settings_out_of_range_and_folders_that_are_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    for (side, part) in [(0, "is 0"), (7, "is 7"), (5000, "is 5000")] {
        let message =
            write_data_set(folder.path(), &DataSetSettings { side, ..settings(10, 2, 0) }).unwrap_err();
        assert!(message.to_string().contains(part), "{message}");
    }
    assert!(write_data_set(folder.path(), &settings(0, 2, 0)).is_err());
    assert!(write_data_set(folder.path(), &settings(10, 0, 0)).is_err());
    assert!(contents(folder.path()).is_empty(), "a refused data set leaves nothing behind");
    let file = folder.path().join("taken");
    fs::write(&file, "").unwrap();
    let message = write_data_set(&file, &settings(10, 2, 0)).unwrap_err().to_string();
    assert!(message.contains("taken"), "{message}");
}
