//! The flaws that pixels do not show, and near duplicates.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use alchemist_engine::data::{
    corruption::{Flaw, FlawShares, Mixture, Neighbors, corrupt, corrupt_caption, plan, relocate, sources},
    synthetic::{DataSetSettings, draw_scene, write_data_set},
};

use crate::{
    correlation,
    grammar::{Parsed, are_opposite, parse},
    words,
};

pub(crate) const OF_SCENES: [Flaw; 4] =
    [Flaw::WrongAttribute, Flaw::WrongCount, Flaw::WrongPosition, Flaw::SwappedSubjects];

/// Checks that a caption contradicts the true one in exactly the way of the flaw.
fn check_contradiction(flaw: Flaw, right: &Parsed, wrong: &Parsed) {
    assert_eq!(right.setting, wrong.setting, "{flaw}");
    assert_eq!(right.subjects.len(), wrong.subjects.len(), "{flaw}");
    let pairs: Vec<_> = right.subjects.iter().zip(&wrong.subjects).collect();
    let mut places = pairs.iter().filter(|(right, wrong)| right.1 != wrong.1);
    match flaw {
        Flaw::WrongAttribute => {
            assert!(places.next().is_none());
            let changed: Vec<_> = pairs.iter().filter(|(right, wrong)| right.0 != wrong.0).collect();
            assert_eq!(changed.len(), 1);
            let (right, wrong) = (&changed[0].0.0, &changed[0].1.0);
            assert_eq!((right.count, right.shape), (wrong.count, wrong.shape));
            let differs =
                [right.size != wrong.size, right.pattern != wrong.pattern, right.color != wrong.color];
            assert_eq!(differs.iter().filter(|&&differs| differs).count(), 1, "{right:?} and {wrong:?}");
            assert!(right.size == wrong.size || !(right.size.is_empty() || wrong.size.is_empty()));
            assert!(right.pattern == wrong.pattern || !wrong.pattern.is_empty());
            // No other subject is as described.
            assert_eq!(pairs.iter().filter(|(other, _)| other.0.shape == right.shape).count(), 1);
        }
        Flaw::WrongCount => {
            let (right, wrong) = (&pairs[0].0.0, &pairs[0].1.0);
            assert_ne!(right.count, wrong.count);
            assert_eq!((right.size, right.color, right.shape), (wrong.size, wrong.color, wrong.shape));
            assert!(pairs[1..].iter().all(|(right, wrong)| right.0 == wrong.0));
            assert!(wrong.count == 1 || pairs.iter().all(|(_, wrong)| wrong.1.is_none()));
        }
        Flaw::WrongPosition => {
            assert!(pairs.iter().all(|(right, wrong)| right.0 == wrong.0));
            let (right, wrong) = places.next().expect("one place differs");
            assert!(are_opposite(right.1.unwrap(), wrong.1.unwrap()), "{right:?} and {wrong:?}");
            assert!(places.next().is_none());
        }
        Flaw::SwappedSubjects => {
            assert!(places.next().is_none() && pairs[1].0.1.is_some());
            assert!(pairs[0].0.0 == pairs[1].1.0 && pairs[1].0.0 == pairs[0].1.0);
            assert!(pairs[2..].iter().all(|(right, wrong)| right == wrong));
        }
        _ => panic!("{flaw} is no contradiction"),
    }
}

#[test]
fn captions_that_contradict_the_scene_differ_in_one_thing() {
    let mut found = BTreeMap::new();
    for index in 0..3000 {
        let scene = draw_scene(5, index, 12);
        let right = parse(&scene.caption);
        for flaw in OF_SCENES {
            let Some(wrong) = scene.misdescribed(flaw, 5, index) else { continue };
            assert_eq!(scene.misdescribed(flaw, 5, index).as_ref(), Some(&wrong));
            check_contradiction(flaw, &right, &parse(&wrong));
            *found.entry(flaw).or_insert(0) += 1;
        }
        for flaw in Flaw::ALL.into_iter().filter(|flaw| !flaw.needs_scene()) {
            assert!(scene.misdescribed(flaw, 5, index).is_none());
        }
    }
    assert!(OF_SCENES.iter().all(|flaw| found[flaw] > 1500), "of 3000 scenes: {found:?}");
    let scenes: Vec<_> = (0..50).map(|index| draw_scene(5, index, 12)).collect();
    let wrong = |seed: u64| -> Vec<_> {
        scenes.iter().zip(0..).map(|(scene, at)| scene.misdescribed(Flaw::WrongCount, seed, at)).collect()
    };
    assert!(wrong(0) != wrong(1), "the seed has no effect");
}

#[test]
fn translations_say_the_same_and_in_german_or_spanish() {
    let mut meanings: BTreeMap<String, String> = BTreeMap::new();
    let (mut german, mut spanish) = (0, 0);
    for index in 0..4000 {
        let scene = draw_scene(8, index, 12);
        let translated = scene.misdescribed(Flaw::TranslatedCaption, 8, index).unwrap();
        let has = |list: &[&str]| words(&translated).iter().any(|word| list.contains(word));
        let is_german = has(&["auf", "über", "im", "am", "in"]);
        assert_ne!(is_german, has(&["sobre", "en"]), "{translated}");
        *(if is_german { &mut german } else { &mut spanish }) += 1;
        assert!(!has(&["the", "an", "of", "on", "background", "and"]), "{translated}");
        let meaning = meanings.entry(translated.clone()).or_insert_with(|| scene.caption.clone());
        assert_eq!(*meaning, scene.caption, "{translated}");
    }
    assert!(german > 1800 && spanish > 1800, "{german} German, {spanish} Spanish");
    for (english, translated) in [
        (
            "three small orange hearts and a small pink square on snow",
            "drei kleine orangefarbene Herzen und ein kleines rosafarbenes Quadrat auf Schnee",
        ),
        (
            "a red house right of a small brown bird and above a blue heart on purple and red stripes",
            "ein rotes Haus rechts von einem kleinen braunen Vogel und über einem blauen Herzen auf violetten und roten \
             Streifen",
        ),
        (
            "two striped blue diamonds on yellow sand at night",
            "dos rombos azules a rayas sobre arena amarilla de noche",
        ),
        (
            "a large blue cross right of a small pink flower on green grass under a blue sky",
            "una cruz grande azul a la derecha de una flor pequeña rosa sobre hierba verde bajo un cielo azul",
        ),
    ] {
        let found = meanings.iter().find(|(_, meaning)| *meaning == english).map(|found| found.0.as_str());
        assert_eq!(found, Some(translated), "{english}");
    }
}

#[test]
fn captions_are_corrupted_without_another_record() {
    let caption = "A small brown dog runs along the beach, and nobody sees it.";
    let mut seen: BTreeMap<Flaw, BTreeSet<String>> = BTreeMap::new();
    for record in 0..200 {
        for flaw in Flaw::ALL {
            let corrupted = corrupt_caption(caption, flaw, 3, record);
            assert_eq!(corrupted, corrupt_caption(caption, flaw, 3, record));
            if let Some(corrupted) = corrupted {
                assert_ne!(corrupted, caption);
                assert!(!corrupted.is_empty() && !corrupted.contains('#'), "{corrupted}");
                seen.entry(flaw).or_default().insert(corrupted);
            }
        }
    }
    let flaws: Vec<_> = seen.keys().copied().collect();
    let expected =
        [Flaw::TruncatedCaption, Flaw::GenericCaption, Flaw::BoilerplateCaption, Flaw::ForeignCaption];
    assert_eq!(flaws, expected);
    for start in &seen[&Flaw::TruncatedCaption] {
        assert!(caption.starts_with(start.as_str()) && (3..=6).contains(&words(start).len()), "{start}");
    }
    assert!(seen[&Flaw::TruncatedCaption].len() == 4 && seen[&Flaw::GenericCaption].len() > 12);
    assert!(seen[&Flaw::BoilerplateCaption].len() > 40 && seen[&Flaw::ForeignCaption].len() > 24);
    // What is too short, has no spaces, or is generic itself.
    let truncated = |caption: &str| corrupt_caption(caption, Flaw::TruncatedCaption, 0, 0);
    assert_eq!(["", "dog", "a dog", "..."].map(truncated), [const { None }; 4]);
    let start = truncated("一只狗在沙滩上奔跑。").unwrap();
    assert!("一只狗在沙滩上奔跑。".starts_with(&start) && start.chars().count() <= 5, "{start}");
    for record in 0..200 {
        let generic = corrupt_caption(" An Image", Flaw::GenericCaption, 0, record).unwrap();
        assert_ne!(generic, "an image");
    }
}

#[test]
fn a_neighbor_is_of_the_category_or_shares_most_words_and_says_something_else() {
    let captions =
        ["a red car", "a blue car", "a red car!", "a car", "a red apple", "a green apple tree", "zebra"];
    let categories = ["car", "car", "car", "car", "fruit", "fruit", ""];
    let neighbors = Neighbors::new(&captions, &categories);
    for seed in 0..20 {
        // "a car" follows from the other captions, and no other record is like the zebra.
        assert_eq!(neighbors.of(0, seed), Some(1));
        assert_eq!(neighbors.of(2, seed), Some(1));
        assert_eq!(neighbors.of(1, seed), Some(0));
        assert_eq!(neighbors.of(3, seed), None);
        assert_eq!(neighbors.of(4, seed), Some(5));
        assert_eq!(neighbors.of(6, seed), None);
    }
    let neighbors = Neighbors::new(&captions, &[""; 7]);
    let all: Vec<_> = (0..7).map(|record| neighbors.of(record, 0)).collect();
    assert_eq!(all, [Some(1), Some(0), Some(1), Some(4), Some(0), Some(4), None]);
    assert_eq!(Neighbors::default().of(0, 0), None);
}

#[test]
fn flaws_move_to_records_that_can_have_them() {
    let shares = FlawShares::of(&[(Flaw::WrongCount, 0.2), (Flaw::WrongPosition, 0.1), (Flaw::Noise, 0.1)]);
    let planned = plan(100, &shares, 4).unwrap();
    let fits = |record: usize, flaw| match flaw {
        Flaw::WrongCount => record.is_multiple_of(3),
        Flaw::WrongPosition => record >= 80,
        _ => true,
    };
    let mut flaws = planned.clone();
    relocate(&mut flaws, 4, fits).unwrap();
    assert!(flaws.iter().enumerate().all(|(record, &flaw)| fits(record, flaw)));
    for flaw in Flaw::ALL {
        let count = |flaws: &[Flaw]| flaws.iter().filter(|&&other| other == flaw).count();
        assert_eq!(count(&flaws), count(&planned), "{flaw}");
    }
    // Nothing moves without need.
    let kept = |record: &usize| planned[*record] != Flaw::Clean && fits(*record, planned[*record]);
    assert!((0..100).filter(kept).all(|record| flaws[record] == planned[record]));
    let message = relocate(&mut planned.clone(), 4, |record, _| record < 10).unwrap_err().to_string();
    assert!(message.contains("applies to too few records"), "{message}");
}

#[test]
fn mixtures_corrupt_three_tenths() {
    for mixture in Mixture::ALL {
        assert_eq!(mixture.to_string().parse::<Mixture>().unwrap(), mixture);
        for scenes in [false, true] {
            let shares = mixture.shares(scenes);
            let total: f64 = Flaw::ALL[1..].iter().map(|&flaw| shares.share(flaw)).sum();
            assert!((total - 0.3).abs() < 1e-12, "{mixture}: {total}");
            let with = |flaw: Flaw| shares.share(flaw) > 0.0;
            let (of_images, rest): (Vec<_>, Vec<_>) =
                Flaw::ALL[1..].iter().filter(|&&flaw| with(flaw)).partition(|flaw| flaw.corrupts_image());
            let half: f64 = of_images.iter().map(|&&flaw| shares.share(flaw)).sum();
            match mixture {
                Mixture::Pixels => assert!(rest.is_empty() && of_images.len() == 5),
                Mixture::Both => assert!((half - 0.15).abs() < 1e-12),
                Mixture::Duplicates => {
                    assert!(rest.len() == 4 && rest.iter().all(|flaw| flaw.copies_image()));
                }
                Mixture::Text => assert_eq!((rest.len(), of_images.len()), (if scenes { 10 } else { 6 }, 0)),
                Mixture::Mismatch => {
                    assert_eq!((rest.len(), of_images.len()), (if scenes { 6 } else { 2 }, 0));
                }
            }
            assert!(scenes || !Flaw::ALL.iter().any(|&flaw| with(flaw) && flaw.needs_scene()));
        }
    }
    let message = "everything".parse::<Mixture>().unwrap_err().to_string();
    assert!(message.contains("pixels, text, both, mismatch, duplicates"), "{message}");
}

/// The rows of a table.
pub(crate) fn rows_of(table: &Path) -> Vec<csv::StringRecord> {
    csv::Reader::from_path(table).unwrap().records().map(Result::unwrap).collect()
}

fn mirrored(rgb: &image::RgbImage) -> image::RgbImage {
    image::imageops::flip_horizontal(rgb)
}

/// Checks a near duplicate against its source.
fn check_near_duplicate(flaw: Flaw, image: &image::RgbImage, source: &image::RgbImage) {
    let difference = |left: &image::RgbImage, right: &image::RgbImage| {
        let pairs = left.as_raw().iter().zip(right.as_raw());
        pairs.map(|(left, right)| f64::from(left.abs_diff(*right))).sum::<f64>() / left.as_raw().len() as f64
    };
    match flaw {
        Flaw::Duplicate => assert!(image == source),
        Flaw::FlippedDuplicate => assert!(*image == mirrored(source)),
        Flaw::RecompressedDuplicate => {
            assert!(image != source);
            assert!(difference(image, source) < 12.0, "recompressed: {}", difference(image, source));
        }
        _ => assert!(image != source, "{flaw}"),
    }
}

#[test]
fn the_synthetic_data_set_has_every_flaw() {
    const TRAIN: usize = 600;
    let folder = tempfile::tempdir().unwrap();
    for (mixture, seed) in [(Mixture::Text, 6), (Mixture::Mismatch, 7), (Mixture::Duplicates, 8)] {
        let shares = mixture.shares(true);
        let settings = DataSetSettings { train: TRAIN, validation: 1, side: 32, shares, seed };
        let folder = folder.path().join(mixture.to_string());
        let rows = rows_of(&write_data_set(&folder, &settings).unwrap().train_csv);
        assert_eq!(rows.len(), TRAIN);
        let image = |row: &csv::StringRecord| image::open(folder.join(&row[1])).unwrap().into_rgb8();
        let captions: BTreeSet<String> =
            (0..TRAIN as u64).map(|index| draw_scene(seed, index, 32).caption).collect();
        let mut counts = BTreeMap::new();
        let mut near = Vec::new();
        for (index, row) in rows.iter().enumerate() {
            let flaw: Flaw = row[3].parse().unwrap();
            *counts.entry(flaw).or_insert(0) += 1;
            let (scene, caption) = (draw_scene(seed, index as u64, 32), &row[2]);
            assert_eq!(flaw.copies_image(), !row[4].is_empty());
            if flaw.copies_image() {
                let source = &rows[row[4].parse::<usize>().unwrap()];
                assert_eq!((&source[2], &source[3]), (caption, "clean"));
                check_near_duplicate(flaw, &image(row), &image(source));
                if flaw == Flaw::CroppedDuplicate {
                    near.push(correlation(image(row).as_raw(), image(source).as_raw()));
                }
                let sides = words(caption).iter().any(|word| ["left", "right"].contains(word));
                assert!(flaw != Flaw::FlippedDuplicate || !sides, "{caption}");
                continue;
            }
            assert!(image(row).as_raw() == &scene.rgb, "{flaw} changes the image of row {index}");
            assert_eq!(flaw == Flaw::Clean, *caption == scene.caption, "{flaw}: {caption}");
            match flaw {
                _ if OF_SCENES.contains(&flaw) => {
                    check_contradiction(flaw, &parse(&scene.caption), &parse(caption));
                }
                Flaw::NeighborCaption => {
                    let shape = |caption: &str| parse(caption).subjects.first().map(|first| first.0.shape);
                    assert_eq!(shape(caption), shape(&scene.caption));
                    let (own, other) = (words(&scene.caption), words(caption));
                    assert!(!own.is_subset(&other) && !other.is_subset(&own));
                    assert!(captions.contains(caption));
                }
                Flaw::WrongCaption => assert!(captions.contains(caption)),
                Flaw::TruncatedCaption => assert!(scene.caption.starts_with(caption)),
                Flaw::TranslatedCaption => {
                    let translated = scene.misdescribed(flaw, seed, index as u64);
                    assert_eq!(translated.as_deref(), Some(caption));
                }
                _ => {}
            }
        }
        for flaw in Flaw::ALL {
            let count = counts.get(&flaw).copied().unwrap_or(0);
            let planned = shares.share(flaw) * TRAIN as f64;
            let exact = if flaw == Flaw::Clean { planned } else { planned.round() };
            assert!((f64::from(count) - exact).abs() < 0.5, "{mixture}: {count} {flaw}, not {exact}");
        }
        let mean = near.iter().sum::<f64>() / near.len() as f64;
        assert!(near.is_empty() || mean > 0.6, "cropped images correlate by {mean}");
    }
}

#[test]
fn near_duplicates_of_one_image_are_deterministic() {
    let clean = draw_scene(21, 4, 48).rgb;
    let near = |flaw, seed| {
        let mut rgb = clean.clone();
        corrupt(&mut rgb, 48, 48, flaw, seed, 4).unwrap();
        rgb
    };
    for flaw in [Flaw::CroppedDuplicate, Flaw::FlippedDuplicate, Flaw::RecompressedDuplicate] {
        assert!(near(flaw, 0) == near(flaw, 0) && near(flaw, 0) != clean, "{flaw}");
    }
    assert!(near(Flaw::CroppedDuplicate, 0) != near(Flaw::CroppedDuplicate, 1));
    let plain = [Flaw::FlippedDuplicate, Flaw::Clean];
    let message = sources(&plain, &["", "left of it"], &Neighbors::default(), 0).unwrap_err().to_string();
    assert!(message.contains("neither left nor right"), "{message}");
}
