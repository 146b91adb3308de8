//! Messages for driver errors, and the driver and GPU versions that are rejected.

use std::ffi::c_int;

use cudarc::driver::{DriverError, sys};

/// The driver version that the kernels' toolkit requires: CUDA 13.0, in the encoding of `cuDriverGetVersion`.
const OLDEST_DRIVER: c_int = 13_000;
/// The oldest architecture that the kernels are compiled for.
const OLDEST_ARCHITECTURE: (u32, u32) = (8, 0);

/// The driver's error as one phrase.
pub(super) fn phrase(error: DriverError) -> String {
    let text = |found: Result<&std::ffi::CStr, DriverError>| {
        found.map_or_else(|_| "unknown".to_owned(), |text| text.to_string_lossy().into_owned())
    };
    format!("{} ({})", text(error.error_string()), text(error.error_name()))
}

/// Rejects a driver older than the kernels' toolkit.
pub(super) fn check_driver(version: c_int) -> Result<(), String> {
    if version >= OLDEST_DRIVER {
        return Ok(());
    }
    let [has, needs] =
        [version, OLDEST_DRIVER].map(|version| format!("{}.{}", version / 1000, version % 1000 / 10));
    Err(format!("the driver is for CUDA {has}; the kernels need {needs} or newer: update the driver"))
}

/// Rejects a GPU that the kernels are not compiled for.
pub(super) fn check_architecture((major, minor): (u32, u32)) -> Result<(), String> {
    if (major, minor) >= OLDEST_ARCHITECTURE {
        return Ok(());
    }
    Err(format!("its architecture is {major}.{minor}; the kernels need 8.0 (A100) or newer"))
}

/// Whether an error leaves the context unusable.
pub(super) fn is_sticky(DriverError(code): DriverError) -> bool {
    use sys::CUresult as Code;
    matches!(
        code,
        Code::CUDA_ERROR_ILLEGAL_ADDRESS
            | Code::CUDA_ERROR_LAUNCH_TIMEOUT
            | Code::CUDA_ERROR_CONTEXT_IS_DESTROYED
            | Code::CUDA_ERROR_ASSERT
            | Code::CUDA_ERROR_HARDWARE_STACK_ERROR
            | Code::CUDA_ERROR_ILLEGAL_INSTRUCTION
            | Code::CUDA_ERROR_MISALIGNED_ADDRESS
            | Code::CUDA_ERROR_INVALID_ADDRESS_SPACE
            | Code::CUDA_ERROR_INVALID_PC
            | Code::CUDA_ERROR_LAUNCH_FAILED
            | Code::CUDA_ERROR_ECC_UNCORRECTABLE
            | Code::CUDA_ERROR_NVLINK_UNCORRECTABLE
            | Code::CUDA_ERROR_EXTERNAL_DEVICE
            | Code::CUDA_ERROR_UNKNOWN
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_drivers_and_gpus_are_refused() {
        assert_eq!(check_driver(13_000), Ok(()));
        let message = check_driver(12_080).unwrap_err();
        assert!(message.contains("for CUDA 12.8") && message.contains("need 13.0"), "{message}");
        assert_eq!(check_architecture((8, 0)), Ok(()));
        assert_eq!(check_architecture((12, 0)), Ok(()));
        assert!(check_architecture((7, 5)).unwrap_err().contains("7.5"));
    }
}
