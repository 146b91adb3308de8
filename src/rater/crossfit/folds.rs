//! The folds of a corpus: each group of near-duplicates belongs to one, chosen by a hash of the seed and the group.

use std::collections::{BTreeMap, HashSet};

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

/// Share of a fold's training records that are set aside to stop its proxy early.
const ASIDE: f64 = 0.05;

/// The fold of each record, and the fold's training records.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Folds {
    /// The fold of each record.
    pub(super) of: Vec<usize>,
    /// How many folds there are.
    pub(super) count: usize,
    /// The name of each record's group: its smallest id.
    groups: Vec<String>,
    seed: u64,
}

/// The records that a fold's proxy learns from, all outside the fold.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Training {
    /// Trained on.
    pub(super) train: Vec<usize>,
    /// Set aside to stop early.
    pub(super) aside: Vec<usize>,
}

/// A hash of texts and numbers, uniform over 64 bits.
pub(super) fn hash(seed: u64, purpose: &str, name: &str, number: u64) -> u64 {
    let mut hash = Sha256::new();
    hash.update(format!("{seed}:{purpose}:{number}:{name}"));
    let digest: [u8; 32] = hash.finalize().into();
    digest.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

impl Folds {
    /// Distributes groups over folds; `roots` holds the index of each record's group. The result does not depend on
    /// the order of the records.
    pub(super) fn new(ids: &[String], roots: &[usize], count: usize, seed: u64) -> Self {
        let mut names: BTreeMap<usize, &str> = BTreeMap::new();
        for (id, root) in ids.iter().zip(roots) {
            let name = names.entry(*root).or_insert(id);
            *name = id.as_str().min(name);
        }
        let groups: Vec<String> = roots.iter().map(|root| names[root].to_owned()).collect();
        let of = groups
            .iter()
            .map(|group| usize::try_from(hash(seed, "fold", group, 0) % count as u64).unwrap_or(0))
            .collect();
        Self { of, count, groups, seed }
    }

    /// The number of groups with more than one record, and the number of records in them.
    pub(super) fn grouped(&self) -> (usize, usize) {
        let mut sizes: BTreeMap<&str, usize> = BTreeMap::new();
        self.groups.iter().for_each(|group| *sizes.entry(group).or_default() += 1);
        let several: Vec<usize> = sizes.into_values().filter(|&size| size > 1).collect();
        (several.len(), several.iter().sum())
    }

    /// The records of a fold.
    pub(super) fn members(&self, fold: usize) -> Vec<usize> {
        (0..self.of.len()).filter(|&index| self.of[index] == fold).collect()
    }

    /// Fails if the records outside a fold are too few to train on batches of `batch`.
    ///
    /// # Errors
    /// If so; the message has the largest batch that is possible.
    pub(super) fn expect_batches(&self, batch: usize) -> Result<()> {
        let trainable =
            |batch: usize| (0..self.count).try_for_each(|fold| self.training(fold, batch).map(drop));
        trainable(batch).map_err(|error| {
            let largest = (1..batch).rev().find(|&batch| trainable(batch).is_ok());
            let cure =
                largest.map_or_else(|| "add data".to_owned(), |bs| format!("add data, or set bs={bs}"));
            Error::not_enough_data(format!("{error}; {cure}"))
        })
    }

    /// The records that the proxy of a fold learns from: all others, of which whole groups are set aside.
    ///
    /// # Errors
    /// If fewer than a batch are left to train on, or none can be set aside.
    pub(super) fn training(&self, fold: usize, batch: usize) -> Result<Training> {
        let others: Vec<usize> = (0..self.of.len()).filter(|&index| self.of[index] != fold).collect();
        let mut sizes: BTreeMap<&str, usize> = BTreeMap::new();
        others.iter().for_each(|&index| *sizes.entry(&self.groups[index]).or_default() += 1);
        let mut order: Vec<(u64, &str, usize)> =
            sizes.iter().map(|(group, &size)| (hash(self.seed, "aside", group, 0), *group, size)).collect();
        order.sort_unstable();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count of records")]
        let required =
            ((others.len() as f64 * ASIDE).ceil() as usize).max(batch.min(others.len() / 5)).max(1);
        // A group with more records than are still required is not set aside, so that the proxy keeps enough to
        // train on.
        let (mut aside, mut left) = (HashSet::new(), required);
        for (_, group, size) in order {
            if size <= left {
                aside.insert(group);
                left -= size;
            }
        }
        let largest = sizes.values().max().copied().unwrap_or(0);
        let count = others.len();
        let (aside, train): (Vec<usize>, Vec<usize>) =
            others.into_iter().partition(|&index| aside.contains(self.groups[index].as_str()));
        if train.len() < batch || aside.is_empty() {
            return Err(Error::not_enough_data(format!(
                "{count} records are too few for the proxy of fold {fold}: it is trained on batches of {batch}, {required} \
                 are set aside, and the largest group of near-duplicates has {largest}"
            )));
        }
        Ok(Training { train, aside })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn corpus(count: usize) -> (Vec<String>, Vec<usize>) {
        // Records 0 and 10 are duplicates, 20 and 30, and so on.
        let ids = (0..count).map(|index| format!("r{index:04}")).collect();
        let root = |index: usize| if index % 20 == 10 { index - 10 } else { index };
        (ids, (0..count).map(root).collect())
    }

    #[test]
    fn groups_stay_together_and_the_order_does_not_matter() {
        let (ids, roots) = corpus(400);
        let folds = Folds::new(&ids, &roots, 2, 7);
        let sizes = [0, 1].map(|fold| folds.members(fold).len());
        assert!(sizes.iter().sum::<usize>() == 400 && sizes.iter().all(|&size| size > 150), "{sizes:?}");
        assert_eq!(folds.grouped(), (20, 40));
        for index in (10..400).step_by(20) {
            assert_eq!(folds.of[index], folds.of[index - 10]);
        }
        let reversed: Vec<String> = ids.iter().rev().cloned().collect();
        let mirrored: Vec<usize> = roots.iter().rev().map(|root| 399 - root).collect();
        let again = Folds::new(&reversed, &mirrored, 2, 7);
        assert_eq!(again.of, folds.of.iter().rev().copied().collect::<Vec<_>>());
        assert_ne!(Folds::new(&ids, &roots, 2, 8).of, folds.of);
    }

    #[test]
    fn a_proxy_never_learns_from_its_fold_and_whole_groups_are_set_aside() {
        let (ids, roots) = corpus(400);
        for count in [2, 3] {
            let folds = Folds::new(&ids, &roots, count, 0);
            for fold in 0..count {
                let Training { train, aside } = folds.training(fold, 8).unwrap();
                assert_eq!(train.len() + aside.len() + folds.members(fold).len(), 400);
                assert!(train.iter().chain(&aside).all(|&index| folds.of[index] != fold));
                assert!(aside.len() >= (400 - folds.members(fold).len()) / 20, "{}", aside.len());
                for &index in aside.iter().filter(|&&index| index % 20 == 10) {
                    assert!(aside.contains(&(index - 10)));
                }
            }
        }
        let refused = Folds::new(&ids[..20], &roots[..20], 2, 0).training(0, 32).unwrap_err();
        assert!(refused.to_string().contains("batches of 32"), "{refused}");
    }

    #[test]
    fn a_large_group_is_trained_on_and_not_set_aside() {
        let (ids, _) = corpus(200);
        let roots: Vec<usize> = (0..200).map(|index| if index < 80 { 0 } else { index }).collect();
        for seed in 0..20 {
            let folds = Folds::new(&ids, &roots, 2, seed);
            for fold in 0..2 {
                let Training { train, aside } = folds.training(fold, 8).unwrap();
                assert!(aside.iter().all(|&index| index >= 80), "seed {seed}");
                assert_eq!(train.iter().any(|&index| index < 80), folds.of[0] != fold);
            }
        }
        let one = vec![0; 200];
        let folds = Folds::new(&ids, &one, 2, 0);
        let refused = folds.training(1 - folds.of[0], 8).unwrap_err().to_string();
        assert!(refused.contains("near-duplicates has 200"), "{refused}");
    }
}
