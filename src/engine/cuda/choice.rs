//! The device that the user selects.

use std::{fmt, str::FromStr};

use super::device::Device;
use crate::error::{Error, Result};

/// A device as the user names it: `cpu`, `cuda`, `cuda:1`, `emulated`, `auto`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The CPU reference, without kernels.
    #[default]
    Cpu,
    /// GPU number N; `cuda` is the first.
    Cuda(usize),
    /// The GPU's kernels on the CPU.
    Emulated,
    /// The first GPU if it can be used, else the CPU.
    Auto,
}

impl DeviceChoice {
    /// The device, or `None` for the CPU.
    ///
    /// # Errors
    /// If the device is not available; the message says why. `auto` never fails, and logs why it falls back to the CPU
    /// (shown with `-v`).
    pub fn open(self) -> Result<Option<Device>> {
        match self {
            Self::Cpu => Ok(None),
            Self::Cuda(ordinal) => Device::cuda(ordinal).map(Some),
            Self::Emulated => Device::emulated().map(Some),
            Self::Auto => {
                Ok(Device::cuda(0).inspect_err(|reason| tracing::info!("using the CPU: {reason}")).ok())
            }
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let refuse = || {
            Error::argument(format!(
                "unknown device `{name}`; expected one of cpu, cuda (the first GPU), cuda:N, emulated, auto; \
                 `alchemist-engine devices` lists them"
            ))
        };
        match name {
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            "emulated" => Ok(Self::Emulated),
            "auto" => Ok(Self::Auto),
            _ => {
                let number = name.strip_prefix("cuda:").ok_or_else(refuse)?;
                if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
                    return Err(refuse());
                }
                number.parse().map(Self::Cuda).map_err(|_| refuse())
            }
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => formatter.write_str("cpu"),
            Self::Cuda(ordinal) => write!(formatter, "cuda:{ordinal}"),
            Self::Emulated => formatter.write_str("emulated"),
            Self::Auto => formatter.write_str("auto"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_written() {
        for (name, choice) in [
            ("cpu", DeviceChoice::Cpu),
            ("cuda", DeviceChoice::Cuda(0)),
            ("cuda:0", DeviceChoice::Cuda(0)),
            ("cuda:12", DeviceChoice::Cuda(12)),
            ("emulated", DeviceChoice::Emulated),
            ("auto", DeviceChoice::Auto),
        ] {
            assert_eq!(name.parse::<DeviceChoice>().unwrap(), choice);
            assert_eq!(choice.to_string().parse::<DeviceChoice>().unwrap(), choice);
        }
        for name in
            ["", "CPU", "gpu", "cuda:", "cuda:-1", "cuda:+1", "cuda:x", "cuda:99999999999999999999", "cuda 0"]
        {
            let message = name.parse::<DeviceChoice>().unwrap_err().to_string();
            assert!(message.contains(&format!("unknown device `{name}`")), "{message}");
        }
    }

    #[test]
    fn the_processor_is_no_device() {
        assert!(DeviceChoice::Cpu.open().unwrap().is_none());
        assert_eq!(DeviceChoice::default(), DeviceChoice::Cpu);
    }
}
