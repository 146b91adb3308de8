//! Dispatches on the dtype and the device of a tensor to code that is generic over its float type.

/// Runs a body with a type name bound to the Rust float type of a dtype that the CPU computes in.
macro_rules! with_float {
    ($dtype:expr, $op:expr, $type:ident => $body:expr) => {
        match $dtype {
            $crate::engine::DType::F32 => {
                type $type = f32;
                $body
            }
            $crate::engine::DType::F64 => {
                type $type = f64;
                $body
            }
            other => {
                Err($crate::Error::shape($op, format!("the CPU computes in F32 or F64, not in {other:?}")))
            }
        }
    };
}

/// Runs one of two bodies, depending on where a tensor is: the CPU reference, with a type name bound to its float type,
/// or the launches on a device, with the name bound to the element type of the storage.
macro_rules! dispatch {
    ($op:expr, $tensor:expr, cpu $float:ident => $reference:expr, cuda $number:ident => $launch:expr $(,)?) => {
        if $tensor.device().is_none() {
            $crate::engine::dispatch::with_float!($tensor.dtype(), $op, $float => $reference)
        } else {
            $crate::engine::dispatch::with_number!($tensor.dtype(), $op, $number => $launch)
        }
    };
}

/// Runs a body with a type name bound to the Rust type of a dtype that kernels store floats in.
macro_rules! with_number {
    ($dtype:expr, $op:expr, $type:ident => $body:expr) => {
        match $dtype {
            $crate::engine::DType::F32 => {
                type $type = f32;
                $body
            }
            $crate::engine::DType::Bf16 => {
                type $type = half::bf16;
                $body
            }
            $crate::engine::DType::F16 => {
                type $type = half::f16;
                $body
            }
            other => Err($crate::Error::shape(
                $op,
                format!("devices compute with F32, Bf16 or F16, not with {other:?}"),
            )),
        }
    };
}

pub(crate) use {dispatch, with_float, with_number};
