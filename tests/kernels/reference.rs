//! An op of the crate's CPU reference, to compare kernels with.

use alchemist_engine::{
    Result,
    engine::{Ignore, Parameters, Tape, Tensor, Var},
};

/// An op of the CPU reference in f64: its result, and the gradients of all inputs.
pub(crate) fn reference(
    inputs: &[(&[usize], &[f64])],
    d_output: &[f64],
    op: impl FnOnce(&mut Tape<'_>, &[Var]) -> Result<Var>,
) -> (Vec<f64>, Vec<Vec<f64>>) {
    let parameters = Parameters::default();
    let mut tape = Tape::new(&parameters);
    let leaves: Vec<Var> = inputs
        .iter()
        .map(|(shape, values)| tape.leaf(Tensor::new(shape, values.to_vec()).unwrap()))
        .collect();
    let y = op(&mut tape, &leaves).unwrap();
    let d_output = Tensor::new(y.value().shape(), d_output.to_vec()).unwrap();
    let gradients =
        tape.backward(vec![(&y, d_output)], &leaves.iter().collect::<Vec<_>>(), &mut Ignore).unwrap();
    (
        y.value().to_f64_vec().unwrap(),
        gradients.into_iter().map(|gradient| gradient.unwrap().to_f64_vec().unwrap()).collect(),
    )
}
