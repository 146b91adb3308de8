//! The parts of a run's page that cross-fitting adds: the training of the proxies, and why a pair has its rating.

use std::{collections::HashMap, path::Path};

use super::{
    Agreement, CaptionSignal, FoldProxySummary, HeldOut, fold_proxy, measured::read_measured,
    reference::Reference,
};
use crate::{
    config::Config,
    error::Result,
    report::{
        page::{Cell, Content, Section, Table},
        plot::{LossCurves, Series, loss_curves_svg},
    },
    training::run_directory::{FOLDS, GAINS},
};

/// The measurements of a cross-fitted run.
pub(crate) struct RunMeasurements {
    folds: Vec<FoldProxySummary>,
    /// By id.
    measured: Vec<(String, HeldOut)>,
    references: Vec<Reference>,
    agreement: Option<Agreement>,
}

/// Why a pair has its rating.
pub(crate) struct Explanation {
    /// The measurement that lowers the rating, in three words; empty if none is in the worse half of the fold.
    pub(crate) brief: &'static str,
    /// Each measurement and its position in the fold.
    pub(crate) lines: Vec<String>,
}

impl RunMeasurements {
    /// Reads the measurements of a run; `None` if its rule measures nothing.
    ///
    /// # Errors
    /// If a file is missing or damaged.
    pub(crate) fn of_run(run: &Path, config: &Config) -> Result<Option<Self>> {
        let table = run.join(GAINS);
        if !config.training.rule.rule.needs().caption_gain || !table.exists() {
            return Ok(None);
        }
        let measured = read_measured(&table)?;
        let folds = (0..config.crossfit.folds)
            .map(|fold| fold_proxy::summary(&run.join(FOLDS).join(fold.to_string())))
            .collect::<Result<_>>()?;
        let references = (0..config.crossfit.folds)
            .map(|fold| {
                let found: Vec<HeldOut> =
                    measured.iter().map(|(_, found)| *found).filter(|found| found.fold == fold).collect();
                Reference::new(&found, config.training.rule.rule.formula)
            })
            .collect::<Result<_>>()?;
        Ok(Some(Self { folds, measured, references, agreement: Agreement::of_run(run)? }))
    }

    /// The losses of the proxies over their epochs, and what the gains tell of the captions.
    ///
    /// # Errors
    /// If the chart cannot be rendered.
    pub(crate) fn training(&self) -> Result<Section> {
        let series = self.folds.iter().enumerate().map(|(fold, summary)| {
            let points = summary.losses.iter().enumerate().map(|(epoch, loss)| (epoch as f64 + 1.0, *loss));
            Series::new(format!("fold {fold}"), points.collect())
        });
        let curves = LossCurves {
            title: "Loss of the proxies over the epochs".to_owned(),
            x_label: "epoch".to_owned(),
            y_label: "cross-entropy per token".to_owned(),
            series: series.collect(),
            smoothing: 0.0,
        };
        let caption = "Loss of each fold's proxy on the records set aside. The weights of the epoch with the lowest loss \
                       evaluate the fold.";
        let number = |value: usize| Cell::Number(value.to_string(), value as f64);
        let rows = self.folds.iter().enumerate().map(|(fold, summary)| {
            let best = summary.losses.get(summary.best).copied().unwrap_or(f64::NAN);
            let evaluated = self.measured.iter().filter(|(_, found)| found.fold == fold).count();
            vec![
                number(fold),
                number(summary.train),
                number(summary.aside),
                number(summary.losses.len()),
                number(summary.best + 1),
                Cell::Number(format!("{best:.4}"), best),
                number(evaluated),
            ]
        });
        let header = ["fold", "trained on", "set aside", "epochs", "best epoch", "lowest loss", "evaluated"];
        let signal = CaptionSignal::of(self.measured.iter().map(|(_, found)| found));
        let mut said = vec![format!(
            "The caption gain is {:.3} nats per token on average, and above 0 for {:.0}% of the records.",
            signal.mean,
            100.0 * signal.positive
        )];
        said.extend(self.agreement.map(|agreement| {
            let Agreement { records, rating, gain, gradient_norm } = agreement;
            format!(
                "Two proxies evaluated {records} records that neither was trained on. The rank correlation of their ratings is \
                 {rating:.2}, of the caption gains {gain:.2}, and of the gradient norms {gradient_norm:.2}."
            )
        }));
        Ok(Section {
            title: "Training of the proxies".to_owned(),
            parts: vec![
                Content::Chart { svg: loss_curves_svg(&curves)?, caption: caption.to_owned() },
                Content::Table(Table { header: header.map(str::to_owned).to_vec(), rows: rows.collect() }),
            ]
            .into_iter()
            .chain(said.into_iter().map(Content::Text))
            .collect(),
        })
    }

    /// Why each pair of the run has its rating, by id.
    pub(crate) fn explanations(&self) -> HashMap<String, Explanation> {
        let explain = |(id, found): &(String, HeldOut)| {
            let reference = &self.references[found.fold];
            let (gain, norm) = (reference.gain(found), 1.0 - reference.norm(found));
            let brief = if gain.min(norm) >= 0.5 {
                ""
            } else if gain < norm {
                "low caption gain"
            } else {
                "high gradient norm"
            };
            let lines = vec![
                format!(
                    "caption gain {:.3} nats per token, higher than {:.0}% of its fold",
                    found.caption_gain(),
                    100.0 * gain
                ),
                format!(
                    "gradient norm {:.3}, lower than {:.0}% of its fold",
                    found.gradient_norm,
                    100.0 * norm
                ),
                format!("held-out loss {:.3}", found.loss),
            ];
            (id.clone(), Explanation { brief, lines })
        };
        self.measured.iter().map(explain).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rater::rules::RULES;

    #[test]
    fn the_worse_measurement_explains_a_rating() {
        let formula = RULES.iter().find(|rule| rule.name == "norm-gain").unwrap().formula;
        let found = |gain: f64, norm: f64| HeldOut {
            fold: 0,
            loss: 4.0,
            gain,
            gain_std: 0.1,
            gain_empty: gain,
            gradient_norm: norm,
        };
        let pairs = [found(0.1, 1.0), found(0.9, 4.0), found(0.8, 2.0), found(0.7, 3.0)];
        let measured =
            ["wrong", "noisy", "good", "third"].map(str::to_owned).into_iter().zip(pairs).collect();
        let references = vec![Reference::new(&pairs, formula).unwrap()];
        let explained =
            RunMeasurements { folds: Vec::new(), measured, references, agreement: None }.explanations();
        let brief = ["wrong", "noisy", "good", "third"].map(|id| explained[id].brief);
        assert_eq!(brief, ["low caption gain", "high gradient norm", "", "high gradient norm"]);
        assert_eq!(
            explained["wrong"].lines[0],
            "caption gain 0.100 nats per token, higher than 12% of its fold"
        );
        assert_eq!(explained["noisy"].lines[1], "gradient norm 4.000, lower than 12% of its fold");
    }
}
