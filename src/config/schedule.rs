//! The key `sche`: the shape of the learning-rate schedule.

use std::str::FromStr;

/// The shape of the learning-rate decay after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ScheduleShape {
    /// `cos`: half a cosine.
    Cosine,
    /// `lin` and `lin0`: constant for this share of the time, then linear.
    FlatThenLinear(f64),
    /// `lin00`: linear.
    Linear,
    /// `lin<share>`: half the slope for this share of the time, then linear to the end.
    Bent(f64),
    /// `exp`: constant for 15% of the time, then exponential.
    Exponential,
}

impl FromStr for ScheduleShape {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "cos" => Ok(Self::Cosine),
            "lin" => Ok(Self::FlatThenLinear(0.15)),
            "lin0" => Ok(Self::FlatThenLinear(0.05)),
            "lin00" => Ok(Self::Linear),
            "exp" => Ok(Self::Exponential),
            other => match other.strip_prefix("lin").and_then(|share| share.parse::<f64>().ok()) {
                Some(share) if share > 0.0 && share < 1.0 => Ok(Self::Bent(share)),
                _ => Err(format!(
                    "must be lin0, lin, lin00, lin<share between 0 and 1>, cos or exp, but is \"{other}\""
                )),
            },
        }
    }
}
