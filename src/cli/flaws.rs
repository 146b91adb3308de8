//! The arguments `--flaws` and `--mixture`.

use crate::{
    data::corruption::{Flaw, FlawShares, Mixture},
    error::{Error, Result},
};

/// The shares of `--flaws` or `--mixture`; `default` if neither is given. With `scenes`, mixtures include the flaws
/// that need the scene of an image.
///
/// # Errors
/// If a flaw or its share cannot be parsed, or a flaw is given twice.
pub(super) fn shares(
    named: &[String],
    mixture: Option<Mixture>,
    default: FlawShares,
    scenes: bool,
) -> Result<FlawShares> {
    if named.is_empty() {
        return Ok(mixture.map_or(default, |mixture| mixture.shares(scenes)));
    }
    let mut shares = FlawShares::NONE;
    for text in named {
        let Some((flaw, share)) = text.split_once('=') else {
            return Err(Error::argument(format!("--flaws: `{text}` has no share; write it like noise=5%")));
        };
        let flaw: Flaw = flaw.trim().parse()?;
        let share = share.trim();
        let number = match share.strip_suffix('%') {
            Some(percent) => percent.trim().parse::<f64>().map(|percent| percent / 100.0),
            None => share.parse(),
        };
        let number = number
            .map_err(|_| Error::argument(format!("the share of `{flaw}` is not a number: `{share}`")))?;
        if shares.share(flaw) > 0.0 {
            return Err(Error::argument(format!("`{flaw}` is given twice; give each flaw once")));
        }
        shares.set(flaw, number)?;
    }
    Ok(shares)
}
