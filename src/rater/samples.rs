//! The per-sample records of a run: the running average of each sample's signal `−c_i`, which is the target of the
//! objective `regression`, and the measurements of the epoch, which figure 3 plots.

use std::path::Path;

use crate::{
    engine::Tensor,
    error::{Error, Result},
    files::{sealed::Written, write_atomic},
    rater::bilevel::{Prior, StepReport},
    training::checkpoint::Tensors,
};

/// The measurements of a sample in an epoch, in the order of a recording's columns.
pub(crate) const MEASURES: [&str; 6] = ["loss", "gradient_norm", "product", "constant", "rating", "weight"];

/// The records of all training samples, one entry per sample in each vector.
#[derive(Clone, Debug, PartialEq)]
pub struct SampleRecords {
    /// The running average of `−c_i`; NaN until there is one.
    average: Vec<f64>,
    /// How many values are in the average.
    counted: Vec<u32>,
    /// Over the samples that have an average: their count, the sum of the averages, and the sum of their squares.
    sums: [f64; 3],
    /// See [`MEASURES`]: the last value in this epoch, NaN if there is none.
    measured: [Vec<f32>; MEASURES.len()],
    /// How often a sample's loss or constant was not finite, since the run began.
    left_out: u64,
    /// The first epoch whose values count in the averages.
    from_epoch: u64,
}

impl SampleRecords {
    /// Empty records of `count` samples. Values from epochs before `from_epoch` count in the averages only until
    /// there are later ones.
    pub fn new(count: usize, from_epoch: u64) -> Self {
        Self {
            average: vec![f64::NAN; count],
            counted: vec![0; count],
            sums: [0.0; 3],
            measured: [(); MEASURES.len()].map(|()| vec![f32::NAN; count]),
            left_out: 0,
            from_epoch,
        }
    }

    /// The running averages of a batch, before its step.
    pub(crate) fn prior(&self, indices: &[usize]) -> Prior {
        let of = |&index: &usize| match self.counted[index] {
            0 => [0.0, 1.0],
            count => {
                let share = 1.0 / (f64::from(count) + 1.0);
                [self.average[index] * (1.0 - share), share]
            }
        };
        let [count, sum, squares] = self.sums;
        let mean = if count > 0.0 { sum / count } else { 0.0 };
        let variance = if count > 0.0 { squares / count - mean * mean } else { 0.0 };
        // A variance within the rounding error counts as 0.
        let spread = variance > 1e-12 * (squares / count.max(1.0));
        Prior {
            averages: indices.iter().map(of).collect(),
            mean,
            inverse_deviation: if spread { 1.0 / variance.sqrt() } else { 0.0 },
        }
    }

    /// The final averages of a batch, for steps of the rater alone; NaN where there is none.
    pub(crate) fn settled(&self, indices: &[usize]) -> Prior {
        let averages = indices.iter().map(|&index| [self.average[index], 0.0]).collect();
        Prior { averages, ..self.prior(indices) }
    }

    /// Records the measurements of a step in `epoch` for the samples at `indices`. Returns the indices of those that
    /// were left out because their loss or constant is not finite.
    pub(crate) fn record(&mut self, indices: &[usize], report: &StepReport, epoch: u64) -> Vec<usize> {
        let columns: [&[f64]; MEASURES.len()] = [
            &report.train_loss,
            &report.gradient_norm,
            &report.product,
            &report.constant,
            &report.logit,
            &report.weight,
        ];
        for (values, column) in self.measured.iter_mut().zip(columns) {
            for (&index, &value) in indices.iter().zip(column) {
                values[index] = narrowed(value);
            }
        }
        for (&index, &constant) in indices.iter().zip(&report.constant) {
            if constant.is_finite() {
                self.enter(index, -constant, epoch);
            }
        }
        self.left_out += report.left_out.len() as u64;
        report.left_out.iter().filter_map(|&at| indices.get(at).copied()).collect()
    }

    fn enter(&mut self, index: usize, gain: f64, epoch: u64) {
        let (average, counted) = (&mut self.average[index], &mut self.counted[index]);
        let [count, sum, squares] = &mut self.sums;
        if average.is_finite() {
            *count -= 1.0;
            *sum -= *average;
            *squares -= *average * *average;
        }
        let share = 1.0 / (f64::from(*counted) + 1.0);
        *average = if *counted == 0 { gain } else { *average * (1.0 - share) + gain * share };
        if epoch >= self.from_epoch {
            *counted += 1;
        }
        *count += 1.0;
        *sum += *average;
        *squares += *average * *average;
    }

    /// Sets the averages to their final values.
    pub(crate) fn settle(&mut self, averages: &[f64]) {
        for (index, &average) in averages.iter().enumerate() {
            self.enter(index, average, self.from_epoch);
        }
    }

    /// How often a sample's loss or constant was not finite, since the run began.
    pub(crate) fn left_out(&self) -> u64 {
        self.left_out
    }

    /// Ends an epoch: writes its measurements into the folder, if there is one, one row per sample, then clears them.
    /// Returns the digest of the file.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(crate) fn end_epoch(
        &mut self,
        ids: &[String],
        epoch: u64,
        recordings: Option<&Path>,
    ) -> Result<Option<Written>> {
        let mut written = None;
        if let Some(folder) = recordings {
            std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
            written = Some(self.write(ids, &folder.join(recording(epoch)))?);
        }
        for values in &mut self.measured {
            values.fill(f32::NAN);
        }
        Ok(written)
    }

    fn write(&self, ids: &[String], path: &Path) -> Result<Written> {
        let refuse = |error: csv::Error| Error::Table {
            path: path.to_path_buf(),
            line: None,
            message: error.to_string(),
        };
        let mut table = csv::Writer::from_writer(Vec::new());
        let number = |value: f64| if value.is_finite() { value.to_string() } else { String::new() };
        let header = ["id"].into_iter().chain(MEASURES).chain(["average"]);
        table.write_record(header).map_err(refuse)?;
        for (index, id) in ids.iter().enumerate() {
            let cells = self.measured.iter().map(|values| match values[index] {
                value if value.is_finite() => value.to_string(),
                _ => String::new(),
            });
            let row = [id.clone()].into_iter().chain(cells).chain([number(self.average[index])]);
            table.write_record(row).map_err(refuse)?;
        }
        let bytes = table.into_inner().map_err(|error| Error::invalid(error.to_string()))?;
        write_atomic(path, &bytes)?;
        Ok(Written::of(&bytes))
    }

    /// All records as tensors, for a checkpoint.
    ///
    /// # Errors
    /// Never, as every vector fills its tensor.
    pub fn tensors(&self) -> Result<Tensors> {
        let count = [self.average.len()];
        let mut tensors = Tensors::new();
        tensors.insert("average".to_owned(), Tensor::new(&count, self.average.clone())?);
        tensors.insert("counted".to_owned(), Tensor::new(&count, self.counted.clone())?);
        let [samples, sum, squares] = self.sums;
        let sums = vec![samples, sum, squares, self.left_out as f64];
        tensors.insert("sums".to_owned(), Tensor::new(&[4], sums)?);
        for (name, values) in MEASURES.iter().zip(&self.measured) {
            tensors.insert(format!("measured/{name}"), Tensor::new(&count, values.clone())?);
        }
        Ok(tensors)
    }

    /// Restores saved records.
    ///
    /// # Errors
    /// If a tensor is missing or has another number of samples.
    pub(crate) fn restore(&mut self, tensors: &Tensors) -> Result<()> {
        let count = self.average.len();
        let of = |name: &str, expected: usize| match tensors.get(name) {
            Some(tensor) if tensor.len() == expected => Ok(tensor),
            Some(tensor) => Err(Error::invalid(format!(
                "the records `{name}` of the samples have {} values, but {expected} are expected",
                tensor.len()
            ))),
            None => Err(Error::invalid(format!("the records `{name}` of the samples are missing"))),
        };
        self.average = of("average", count)?.as_slice::<f64>()?.to_vec();
        self.counted = of("counted", count)?.as_slice::<u32>()?.to_vec();
        let sums = of("sums", 4)?.as_slice::<f64>()?;
        self.sums = [sums[0], sums[1], sums[2]];
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count that was saved")]
        {
            self.left_out = sums[3] as u64;
        }
        for (name, values) in MEASURES.iter().zip(&mut self.measured) {
            *values = of(&format!("measured/{name}"), count)?.as_slice::<f32>()?.to_vec();
        }
        Ok(())
    }
}

/// The file name of an epoch's recording.
pub(crate) fn recording(epoch: u64) -> String {
    format!("epoch-{epoch:04}.csv")
}

#[expect(clippy::cast_possible_truncation, reason = "figures need no more")]
fn narrowed(value: f64) -> f32 {
    value as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(constants: &[f64]) -> StepReport {
        let lost = constants.iter().enumerate().filter(|(_, constant)| !constant.is_finite());
        StepReport {
            train_loss: vec![1.0; constants.len()],
            constant: constants.to_vec(),
            left_out: lost.map(|(at, _)| at).collect(),
            ..StepReport::default()
        }
    }

    #[test]
    fn averages_start_at_the_configured_epoch() {
        let mut samples = SampleRecords::new(4, 1);
        let nothing = samples.prior(&[2]);
        assert_eq!((nothing.averages, nothing.inverse_deviation), (vec![[0.0, 1.0]], 0.0));
        samples.record(&[2, 0], &report(&[-5.0, 1.0]), 0);
        // Until there is a later value, the average is that of the early epoch.
        let prior = samples.prior(&[2]);
        assert_eq!((prior.mean, prior.inverse_deviation), (2.0, 1.0 / 3.0));
        assert_eq!(prior.averages, [[0.0, 1.0]]);
        samples.record(&[2, 0], &report(&[-3.0, 2.0]), 1);
        samples.record(&[2, 0], &report(&[-6.0, 3.0]), 2);
        assert_eq!(samples.average[2], 4.5);
        let averages = samples.prior(&[0, 2]).averages.concat();
        for (found, expected) in averages.into_iter().zip([-5.0 / 3.0, 1.0 / 3.0, 3.0, 1.0 / 3.0]) {
            approx::assert_relative_eq!(found, expected, max_relative = 1e-12);
        }
        let [count, sum, squares] = samples.sums;
        assert_eq!((count, sum, squares), (2.0, 2.0, 4.5 * 4.5 + 2.5 * 2.5));
    }

    #[test]
    fn non_finite_constants_are_reported_and_counted_and_change_nothing() {
        let mut samples = SampleRecords::new(3, 0);
        samples.record(&[0, 1], &report(&[1.0, 2.0]), 0);
        let before = samples.clone();
        assert_eq!(samples.record(&[2, 1], &report(&[f64::NAN, f64::INFINITY]), 0), [2, 1]);
        assert_eq!((samples.left_out(), &samples.sums), (2, &before.sums));
        assert_eq!(samples.average[1], before.average[1]);
        let mut restored = SampleRecords::new(3, 0);
        restored.restore(&samples.tensors().unwrap()).unwrap();
        assert_eq!(format!("{restored:?}"), format!("{samples:?}"));
        let refused = SampleRecords::new(4, 0).restore(&samples.tensors().unwrap()).unwrap_err();
        assert!(refused.to_string().contains("3 values, but 4"), "{refused}");
    }
}
