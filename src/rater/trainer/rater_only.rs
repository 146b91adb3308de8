//! The end of a run: the rater is trained alone, on averages that no longer change.

use serde_json::json;

use super::{Run, batches::Batches};
use crate::{
    error::{Error, Result},
    interrupt::Interrupt,
    jobs::progress::{Metrics, Progress},
    rater::{
        bilevel::{Bilevel, RaterReport},
        samples::SampleRecords,
    },
    training::{run_directory::Journal, schedule::Plan},
};

/// The plan of the rater's own epochs; `None` if it has none.
pub(super) fn plan(run: &Run<'_>) -> Result<Option<Plan>> {
    let epochs = run.config.training.rater_only_epochs;
    if epochs == 0 {
        return Ok(None);
    }
    let mut config = run.config.clone();
    config.training.epochs = epochs;
    Plan::new(&config, run.data.train.len(), run.data.validation.len()).map(Some)
}

/// The metrics of a step of the rater alone, for display.
fn metrics(report: &RaterReport) -> Metrics {
    Metrics {
        summary: format!("rater alone: loss {:.3}", report.loss),
        values: vec![("loss/rater", report.loss), ("gradient_norm/rater", report.gradient_norm)],
    }
}

/// Runs the remaining steps of the rater alone. `step` continues the count of the run's updates.
///
/// # Errors
/// Those of a step and of writing a file; [`Error::Interrupted`] after a checkpoint.
pub(super) fn train_rater(
    run: &Run<'_>,
    plan: &Plan,
    (bilevel, samples): (&mut Bilevel, &SampleRecords),
    journal: &mut Journal,
    mut step: u64,
    interrupt: &Interrupt,
    progress: &mut dyn Progress,
) -> Result<()> {
    let (before, own) = (run.proxy_updates(), plan.updates());
    let total = before + own;
    let mut batches = Batches::new(run)?;
    let every = (own / run.config.training.rater_only_epochs / run.config.log_lines.max(1)).max(1);
    while step < total {
        let at = step - before;
        let micro = batches.of_rater(run, plan, at, samples, bilevel)?;
        let rates = plan.rates(at);
        let report = bilevel.rater_step(&micro, [rates.learning_rate, rates.weight_decay], step)?;
        progress.step(step, total, report.logit.len(), &metrics(&report));
        if at.is_multiple_of(every) || step + 1 == total {
            // The names differ from the proxy's, so that readers of the proxy's learning rates skip these lines.
            let mut line = json!({
                "step": step,
                "rater_only_epoch": plan.epoch(at),
                "rater_learning_rate": rates.learning_rate,
                "rater_loss": report.loss,
                "rater_gradient_norm": report.gradient_norm,
            });
            if let Some(skipped) = report.skipped_updates {
                line["skipped_updates"] = json!(skipped);
            }
            journal.append(&line)?;
        }
        step += 1;
        let due = run.config.checkpoint_every.is_some_and(|every| every > 0 && step.is_multiple_of(every));
        let (stops, regular) = (interrupt.is_raised(), due || step == total);
        if regular || stops {
            run.save(bilevel, samples, step, !regular, &journal.sync()?)?;
        }
        if stops && step < total {
            let path = run.directory.path().display();
            let saved =
                format!("step {step} of {total} is saved; continue with `train --out {path} --resume`");
            return Err(Error::Interrupted { saved });
        }
    }
    Ok(())
}
