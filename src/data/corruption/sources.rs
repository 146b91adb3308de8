//! Donor records: where wrong captions and duplicate images come from.

use std::collections::{BTreeSet, HashMap};

use super::Flaw;
use crate::{
    Error, Result,
    engine::{Purpose, Random},
};

/// First stream index under [`Purpose::Draw`] for choosing sources.
const SOURCES: u64 = 2 << 48;
/// Captions compared to find the most similar one.
const COMPARED: usize = 1024;

/// For each record whose flaw [needs a source](Flaw::needs_source), the index of the record to take the caption or the
/// image from; `None` for the others. `captions` are the original ones, one per record.
///
/// A duplicate copies a clean record, and a mirrored one a record whose caption mentions neither left nor right. A
/// wrong caption comes from a record with a different caption: one that differs in most words if 64 random candidates
/// include one, else one that differs at all.
///
/// # Errors
/// If the lengths differ, there are duplicates but no clean record, all captions are the same, or a record has no
/// neighbor.
pub fn sources<S: AsRef<str>>(
    flaws: &[Flaw],
    captions: &[S],
    neighbors: &Neighbors,
    seed: u64,
) -> Result<Vec<Option<usize>>> {
    if flaws.len() != captions.len() {
        return Err(Error::argument(format!(
            "there are {} flaws for {} captions; pass one of each per record",
            flaws.len(),
            captions.len()
        )));
    }
    let clean: Vec<usize> = (0..flaws.len()).filter(|&record| flaws[record] == Flaw::Clean).collect();
    let undirected = |&record: &usize| !mentions_side(captions[record].as_ref());
    let symmetric: Vec<usize> = if flaws.contains(&Flaw::FlippedDuplicate) {
        clean.iter().copied().filter(undirected).collect()
    } else {
        Vec::new()
    };
    let one_of = |records: &[usize], random: &mut Random, kind: &str| match records.len() {
        0 => Err(Error::not_enough_data(format!(
            "a duplicate needs {kind} to copy, and there is none; lower the shares"
        ))),
        count => Ok(Some(records[random.below(count as u64) as usize])),
    };
    let take = |record: usize, flaw: Flaw| -> Result<Option<usize>> {
        let mut random = Random::new(seed, Purpose::Draw, SOURCES + record as u64);
        match flaw {
            Flaw::FlippedDuplicate => {
                one_of(&symmetric, &mut random, "a clean record whose caption has neither left nor right")
            }
            _ if flaw.copies_image() => one_of(&clean, &mut random, "a clean record"),
            Flaw::WrongCaption => other_caption(record, captions, &mut random).map(Some),
            Flaw::NeighborCaption => neighbors.of(record, seed).map(Some).ok_or_else(|| {
                Error::not_enough_data("a record has no neighbor; set the share of `neighbor_caption` to 0")
            }),
            _ => Ok(None),
        }
    };
    flaws.iter().enumerate().map(|(record, &flaw)| take(record, flaw)).collect()
}

/// Whether a caption is not true of the mirrored image.
fn mentions_side(caption: &str) -> bool {
    words(caption).any(|word| ["left", "right", "leftmost", "rightmost"].contains(&word.as_str()))
}

/// A record whose caption differs from that of `record`.
fn other_caption<S: AsRef<str>>(record: usize, captions: &[S], random: &mut Random) -> Result<usize> {
    let word_set = |record: usize| words(captions[record].as_ref()).collect::<BTreeSet<_>>();
    let own = word_set(record);
    let mut fallback = None;
    for _ in 0..64 {
        let candidate = random.below(captions.len() as u64) as usize;
        let other = word_set(candidate);
        if other == own {
            continue;
        }
        let shared = own.intersection(&other).count();
        // At most half of the words in common: a Jaccard index of at most 1/2.
        if 2 * shared <= own.union(&other).count() {
            return Ok(candidate);
        }
        fallback = fallback.or(Some(candidate));
    }
    let start = random.below(captions.len() as u64) as usize;
    let around = (0..captions.len()).map(|step| (start + step) % captions.len());
    fallback.or_else(|| around.into_iter().find(|&other| word_set(other) != own)).ok_or_else(|| {
        Error::not_enough_data(
            "all captions are the same, so none can be wrong; set the share of `wrong_caption` to 0",
        )
    })
}

/// The words of a caption in lower case, without punctuation.
fn words(caption: &str) -> impl Iterator<Item = String> {
    caption
        .split(|letter: char| !letter.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_lowercase)
}

/// An index of similar captions, for [`Flaw::NeighborCaption`].
///
/// A neighbor's caption has a word that the record's caption does not have, and vice versa: neither may follow from the
/// other.
#[derive(Debug, Default)]
pub struct Neighbors {
    /// The distinct captions of each category, compared as sets of words: the set, and the first record that has it.
    captions: Vec<(Vec<u32>, usize)>,
    /// Per record, its index in `captions` and its category.
    records: Vec<(usize, Option<usize>)>,
    /// Captions by category and by word.
    of_category: Vec<Vec<usize>>,
    with_word: Vec<Vec<usize>>,
}

impl Neighbors {
    /// Indexes captions with their categories, one of each per record. An empty category is none.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn new<S: AsRef<str>, C: AsRef<str>>(captions: &[S], categories: &[C]) -> Self {
        assert_eq!(captions.len(), categories.len(), "one category per caption");
        let mut index = Self::default();
        let (mut vocabulary, mut category_numbers) = (HashMap::new(), HashMap::new());
        let mut known: HashMap<(Option<usize>, Vec<u32>), usize> = HashMap::new();
        for (record, (caption, category)) in captions.iter().zip(categories).enumerate() {
            let next = category_numbers.len();
            let category = match category.as_ref().trim() {
                "" => None,
                name => Some(*category_numbers.entry(name.to_owned()).or_insert(next)),
            };
            let mut set: Vec<u32> = words(caption.as_ref())
                .map(|word| {
                    let next = vocabulary.len() as u32;
                    *vocabulary.entry(word).or_insert(next)
                })
                .collect();
            set.sort_unstable();
            set.dedup();
            index.of_category.resize(category_numbers.len(), Vec::new());
            index.with_word.resize(vocabulary.len(), Vec::new());
            let number = *known.entry((category, set.clone())).or_insert_with(|| {
                let number = index.captions.len();
                if let Some(category) = category {
                    index.of_category[category].push(number);
                }
                set.iter().for_each(|&word| index.with_word[word as usize].push(number));
                index.captions.push((set, record));
                number
            });
            index.records.push((number, category));
        }
        index
    }

    /// The record with the caption of a neighbor of `record`: a random one of the same category, or, without a
    /// category, the one that shares the largest part of its words. `None` if there is none.
    pub fn of(&self, record: usize, seed: u64) -> Option<usize> {
        let &(number, category) = self.records.get(record)?;
        let own = &self.captions[number].0;
        let differs = |&other: &usize| {
            let other = &self.captions[other].0;
            let shared = shared(own, other);
            shared < own.len() && shared < other.len()
        };
        let found = match category {
            Some(category) => {
                let of_category = &self.of_category[category];
                let mut random = Random::new(seed, Purpose::Draw, SOURCES + record as u64);
                let start = random.below(of_category.len() as u64) as usize;
                (0..of_category.len())
                    .map(|step| of_category[(start + step) % of_category.len()])
                    .find(differs)
            }
            None => {
                // Start with the captions that share rare words.
                let mut by_rarity = own.clone();
                by_rarity.sort_by_key(|&word| (self.with_word[word as usize].len(), word));
                let candidates = by_rarity.iter().flat_map(|&word| &self.with_word[word as usize]);
                let score = |other: usize| {
                    let other = &self.captions[other].0;
                    let shared = shared(own, other);
                    shared as f64 / (own.len() + other.len() - shared) as f64
                };
                let candidates = candidates.take(COMPARED).copied().filter(differs);
                candidates
                    .map(|other| (score(other), other))
                    .reduce(|best, next| {
                        // Of two equally similar captions, the earlier one.
                        if next.0 > best.0 || (next.0 == best.0 && next.1 < best.1) { next } else { best }
                    })
                    .map(|(_, other)| other)
            }
        };
        found.map(|other| self.captions[other].1)
    }
}

/// The number of common elements of two sorted sets.
fn shared(left: &[u32], right: &[u32]) -> usize {
    left.iter().filter(|word| right.binary_search(word).is_ok()).count()
}
