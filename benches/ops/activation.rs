//! GELU of the MLP's hidden rows.

use alchemist_engine::{
    Result,
    engine::{
        Parameters,
        ops::activation::{Activation, activate},
    },
};

use crate::{Bench, normal};

pub(crate) fn run(bench: &mut Bench) -> Result<()> {
    let x = normal(&[2, 130, 1024], 1);
    bench.cpu("gelu", &Parameters::default(), &[x], &|tape, vars| {
        activate(tape, &vars[0], Activation::GeluTanh)
    });
    Ok(())
}
