//! The flaws that pixels do not show, planted in a corpus.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use alchemist_engine::{
    data::{
        ColumnNames, Preprocess,
        corruption::{
            Flaw, FlawShares, Mixture,
            plant::{PlantSettings, Planted, plant},
        },
        synthetic::{DataSetSettings, draw_scene, write_data_set},
    },
    interrupt::Interrupt,
};

use crate::{
    flaws::{OF_SCENES, rows_of},
    words,
};

/// A corpus of 240 scenes with categories, in this order of the rows.
struct CategoryCorpus {
    folder: tempfile::TempDir,
}

impl CategoryCorpus {
    const RECORDS: u64 = 240;

    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let settings = DataSetSettings {
            train: Self::RECORDS as usize,
            validation: 1,
            side: 24,
            shares: FlawShares::NONE,
            seed: 6,
        };
        write_data_set(folder.path(), &settings).unwrap();
        Self { folder }
    }

    /// Writes the table with the rows in a given order.
    fn table(&self, name: &str, order: impl Iterator<Item = u64>) -> PathBuf {
        self.table_of(name, order.map(|index| (index, caption_of(index))))
    }

    /// Writes the table with captions of its own.
    fn table_of(&self, name: &str, rows: impl Iterator<Item = (u64, String)>) -> PathBuf {
        let path = self.folder.path().join(name);
        let mut table = csv::Writer::from_path(&path).unwrap();
        table.write_record(["id", "image_save_path", "caption", "category"]).unwrap();
        for (index, caption) in rows {
            let image = format!("train/{index:06}.png");
            table.write_record([&format!("r{index}"), &image, &caption, category_of(index)]).unwrap();
        }
        table.flush().unwrap();
        path
    }

    fn plant(
        &self,
        table: &Path,
        out: &str,
        shares: FlawShares,
        category: Option<&str>,
    ) -> alchemist_engine::Result<Planted> {
        plant(&self.settings(table, out, shares, category), &Interrupt::default(), &mut ())
    }

    fn settings(&self, table: &Path, out: &str, shares: FlawShares, category: Option<&str>) -> PlantSettings {
        PlantSettings {
            corpus: table.to_path_buf(),
            format: None,
            columns: ColumnNames::default(),
            skip_bad_rows: false,
            out: self.folder.path().join(out),
            preprocess: Preprocess::default_for(24),
            shares,
            category_column: category.map(str::to_owned),
            workers: 2,
            seed: 3,
            overwrite: false,
        }
    }

    /// The planted rows by id, each with the bytes of its image.
    fn planted(&self, out: &str) -> BTreeMap<String, (csv::StringRecord, Vec<u8>)> {
        let folder = self.folder.path().join(out);
        let rows = rows_of(&folder.join("corpus.csv")).into_iter();
        rows.map(|row| (row[0].to_owned(), (row.clone(), fs::read(folder.join(&row[1])).unwrap()))).collect()
    }
}

fn caption_of(index: u64) -> String {
    draw_scene(6, index, 24).caption
}

fn category_of(index: u64) -> &'static str {
    ["indoors", "outdoors", "people", ""][(index % 4) as usize]
}

#[test]
fn flaws_of_captions_are_planted_in_any_corpus_in_any_order() {
    let corpus = CategoryCorpus::new();
    let forward = corpus.table("forward.csv", 0..CategoryCorpus::RECORDS);
    let backward = corpus.table("backward.csv", (0..CategoryCorpus::RECORDS).rev());
    corpus.plant(&forward, "clean", FlawShares::NONE, None).unwrap();
    let clean = corpus.planted("clean");
    for mixture in Mixture::ALL {
        let shares = mixture.shares(false);
        let planted = corpus.plant(&forward, &format!("{mixture}"), shares, None).unwrap();
        corpus.plant(&backward, &format!("{mixture}-backward"), shares, None).unwrap();
        let rows = corpus.planted(&mixture.to_string());
        assert_eq!(rows.len(), CategoryCorpus::RECORDS as usize);
        for (flaw, count) in &planted.counts[1..] {
            let planned = shares.share(*flaw) * CategoryCorpus::RECORDS as f64;
            assert!((*count as f64 - planned).abs() <= 0.5, "{mixture}: {count} {flaw}, not {planned}");
        }
        for (id, (row, image)) in &rows {
            let (flaw, source): (Flaw, &str) = (row[4].parse().unwrap(), &row[5]);
            assert_eq!(flaw.needs_source(), !source.is_empty());
            let index: u64 = id[1..].parse().unwrap();
            let (own, caption) = (caption_of(index), &row[2]);
            if !flaw.copies_image() {
                let same = flaw.corrupts_image() == (*image != clean[id].1);
                assert!(same, "{flaw}: the image of {id}");
            }
            match flaw {
                Flaw::NeighborCaption => {
                    let source: u64 = source[1..].parse().unwrap();
                    assert_eq!(*caption, caption_of(source));
                    assert!(category_of(index).is_empty() || category_of(source) == category_of(index));
                    assert!(!words(caption).is_subset(&words(&own)));
                }
                _ if flaw.needs_source() => assert_eq!(*caption, caption_of(source[1..].parse().unwrap())),
                Flaw::TruncatedCaption => assert!(own.starts_with(caption) && own != *caption),
                Flaw::GenericCaption | Flaw::BoilerplateCaption | Flaw::ForeignCaption => {
                    assert_ne!(own, *caption);
                }
                _ => assert_eq!(own, *caption),
            }
        }
        // The oldest flaws are assigned by row, and all others by id.
        let others = corpus.planted(&format!("{mixture}-backward"));
        let same = rows.iter().all(|(id, (row, image))| {
            let (other, other_image) = &others[id];
            (&row[2], &row[4], &row[5], image) == (&other[2], &other[4], &other[5], other_image)
        });
        assert_eq!(same, mixture != Mixture::Pixels, "{mixture}");
    }
}

#[test]
fn flaws_that_a_corpus_cannot_have_are_refused() {
    let corpus = CategoryCorpus::new();
    let table = corpus.table("table.csv", 0..CategoryCorpus::RECORDS);
    let refused = |shares: &[(Flaw, f64)], category| {
        corpus.plant(&table, "refused", FlawShares::of(shares), category).unwrap_err().to_string()
    };
    for flaw in OF_SCENES.into_iter().chain([Flaw::TranslatedCaption]) {
        let message = refused(&[(flaw, 0.1)], None);
        assert!(message.contains(&format!("`{flaw}` needs the scene")), "{message}");
    }
    let message = refused(&[(Flaw::NeighborCaption, 0.1)], Some("kind"));
    assert!(message.contains("no column `kind`") && message.contains("table.csv"), "{message}");
    // Of ten equal captions none has a neighbor; of ten records, 4% are none, which the summary says.
    let equal = corpus.table_of("equal.csv", (0..10).map(|index| (index, "a caption".to_owned())));
    let shares = FlawShares::of(&[(Flaw::NeighborCaption, 0.1)]);
    let message = corpus.plant(&equal, "refused", shares, None).unwrap_err().to_string();
    assert!(message.contains("`neighbor_caption` applies to too few records"), "{message}");
    assert!(!corpus.folder.path().join("refused").exists());
    let shares = FlawShares::of(&[(Flaw::TruncatedCaption, 0.04), (Flaw::GenericCaption, 0.1)]);
    let few = corpus.table("few.csv", 0..10);
    let planted = corpus.plant(&few, "few", shares, None).unwrap();
    assert_eq!(planted.counts, [(Flaw::Clean, 9), (Flaw::TruncatedCaption, 0), (Flaw::GenericCaption, 1)]);
}

#[test]
fn a_smaller_corpus_planted_over_a_larger_one_leaves_none_of_its_images() {
    let corpus = CategoryCorpus::new();
    let images = || fs::read_dir(corpus.folder.path().join("out/images")).unwrap().count();
    corpus.plant(&corpus.table("many.csv", 0..40), "out", FlawShares::NONE, None).unwrap();
    assert_eq!(images(), 40);
    let few = corpus.table("few.csv", 0..5);
    corpus.plant(&few, "out", FlawShares::NONE, None).unwrap_err();
    assert_eq!(images(), 40);
    let settings = corpus.settings(&few, "out", FlawShares::NONE, None);
    plant(&PlantSettings { overwrite: true, ..settings }, &Interrupt::default(), &mut ()).unwrap();
    assert_eq!((images(), corpus.planted("out").len()), (5, 5));
}
