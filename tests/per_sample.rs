//! A tape with samples apart: the gradients of one without, but every contribution says to which sample each row belongs. On
//! the host, and on the emulator unless `ALCHEMIST_DEVICE` names a card.

mod common;

use alchemist_engine::{
    Result,
    encode::TextStates,
    engine::{
        Accumulate, Contribution, DType, Ghost, GradientVisitor, Gradients, ParameterId, Parameters,
        RowOwner, Tape, Tensor, cuda::Device,
    },
    models::{BackboneConfig, DropPath, Initialization, Mode, Proxy, Rope},
};
use common::{normal, relative_error};

const BATCH: usize = 3;
const TOKENS: usize = 14;
const TEXT: usize = 4;

/// A proxy with the shared modulation.
fn backbone(level_embedding: bool) -> BackboneConfig {
    BackboneConfig {
        patch_nums: vec![1, 2, 3],
        vocabulary: 7,
        code_channels: 3,
        text_channels: 5,
        depth: 2,
        width: 16,
        heads: 2,
        mlp_ratio: 2.0,
        attention_l2_norm: true,
        rope: level_embedding.then_some(Rope { theta: 100.0, norm: 8.0 }),
        level_embedding,
        logit_norm: true,
        shared_aln: true,
        cross_attention: true,
        drop_path: 0.4,
        cross_from_first_sample: false,
        initialization: Initialization { std: 0.3, head: 1.0, aln: 0.5, aln_gamma: 0.5 },
    }
}

struct Inputs {
    input: Tensor,
    text: TextStates,
    codes: Tensor,
}

fn batch() -> Inputs {
    let codes = (0..BATCH * TOKENS).map(|at| (at * 5 % 7) as u32).collect();
    Inputs {
        input: normal(&[BATCH, TOKENS - 1, 3], 22, DType::F64),
        text: TextStates {
            states: normal(&[BATCH, TEXT, 5], 20, DType::F64),
            // Over one token alone a softmax is constant, and gradients would be rounding.
            mask: Tensor::new(&[BATCH, TEXT], vec![1u32, 1, 1, 1, 1, 1, 0, 0, 1, 1, 1, 0]).unwrap(),
            pooled: normal(&[BATCH, 5], 21, DType::F64),
        },
        codes: Tensor::new(&[BATCH, TOKENS], codes).unwrap(),
    }
}

/// Sample `at` of the batch by itself.
fn alone(batch: &Inputs, at: usize) -> Inputs {
    let own = |tensor: &Tensor| {
        let shape = [&[1], &tensor.shape()[1..]].concat();
        let range = at * tensor.len() / BATCH..(at + 1) * tensor.len() / BATCH;
        match tensor.dtype() {
            DType::U32 => Tensor::new(&shape, tensor.as_slice::<u32>().unwrap()[range].to_vec()),
            _ => Tensor::new(&shape, tensor.as_slice::<f64>().unwrap()[range].to_vec()),
        }
        .unwrap()
    };
    Inputs {
        input: own(&batch.input),
        text: TextStates {
            states: own(&batch.text.states),
            mask: own(&batch.text.mask),
            pooled: own(&batch.text.pooled),
        },
        codes: own(&batch.codes),
    }
}

/// Weights and a batch in one place.
struct Case {
    proxy: Proxy,
    parameters: Parameters,
    batch: Inputs,
    drop_path: DropPath,
}

impl Case {
    fn on_host(level_embedding: bool) -> Self {
        let (proxy, parameters) = Proxy::new(&backbone(level_embedding), DType::F64, 1).unwrap();
        let drop_path = proxy.draw(5, 9, BATCH).unwrap();
        Self { proxy, parameters, batch: batch(), drop_path }
    }

    fn on_device(level_embedding: bool, compute: DType) -> Self {
        let device = common::open_device().unwrap_or_else(|| Device::emulated().expect("the emulator"));
        let Self { proxy, parameters, batch: Inputs { input, text, codes }, mut drop_path } =
            Self::on_host(level_embedding);
        let there = |tensor: &Tensor| tensor.cast(DType::F32).unwrap().to_device(&device).unwrap();
        for keep in drop_path.tensors_mut() {
            *keep = there(keep);
        }
        Self {
            proxy,
            parameters: parameters.to_device(&device, compute).unwrap(),
            batch: Inputs {
                input: there(&input),
                text: TextStates {
                    states: there(&text.states),
                    mask: text.mask.to_device(&device).unwrap(),
                    pooled: there(&text.pooled),
                },
                codes: codes.to_device(&device).unwrap(),
            },
            drop_path,
        }
    }

    /// A tensor of the batch's where the weights are, in the type that losses have there.
    fn near(&self, tensor: &Tensor) -> Tensor {
        match self.parameters.device() {
            None => tensor.clone(),
            Some(device) => tensor.cast(DType::F32).unwrap().to_device(device).unwrap(),
        }
    }

    /// The losses of all samples, and the backward pass of their sum weighted by `seeds`.
    fn run(&self, how: How, seeds: [f64; BATCH], visitor: &mut dyn GradientVisitor) -> Result<Tensor> {
        let mut tape =
            Tape::new(&self.parameters).with_per_sample_parts(how.apart).with_recomputing(how.recompute);
        let Inputs { input, text, codes } = &self.batch;
        let mode = Mode::Train(&self.drop_path);
        let loss = self.proxy.loss(&mut tape, input, text, codes, 0.1, mode)?.sample_loss;
        let seeds = self.near(&Tensor::new(&[BATCH], seeds.to_vec())?);
        tape.backward(vec![(&loss, seeds)], &[], visitor)?;
        loss.into_value().to_host()
    }

    fn gradients(&self, how: How) -> (Tensor, Gradients) {
        let mut visitor = Accumulate::default();
        let losses = self.run(how, [1.0, 0.5, 2.0], &mut visitor).unwrap();
        (losses, visitor.gradients)
    }

    /// The largest relative error over all tensors; none may be missing.
    fn worst(&self, found: &Gradients, expected: &Gradients) -> f64 {
        assert_eq!([found.len(), expected.len()], [self.parameters.len(); 2]);
        let error = |(found, expected): (&Option<Tensor>, &Option<Tensor>)| {
            relative_error(found.as_ref().unwrap(), expected.as_ref().unwrap())
        };
        found.iter().zip(expected).map(error).fold(0.0, f64::max)
    }
}

#[derive(Clone, Copy)]
struct How {
    apart: bool,
    recompute: bool,
}

const SHARED: How = How { apart: false, recompute: false };
const APART: How = How { apart: true, recompute: false };
const APART_AGAIN: How = How { apart: true, recompute: true };

/// The rows that a contribution counts in, which [`RowOwner`] tells the owners of.
fn row_count(contribution: &Contribution<'_>) -> usize {
    let rows = contribution.rows();
    rows.len() / rows.shape().last().copied().unwrap_or(1)
}

/// Collects who owns the rows of each contribution, having counted them.
#[derive(Default)]
struct Owners(Vec<(String, RowOwner)>);

impl GradientVisitor for Owners {
    fn visit(
        &mut self,
        parameters: &Parameters,
        id: ParameterId,
        owner: RowOwner,
        contribution: &Contribution<'_>,
    ) -> Result<()> {
        if let RowOwner::Samples { rows_per_sample } = owner {
            let each =
                if matches!(contribution, Contribution::PerSample { .. }) { 1 } else { rows_per_sample };
            assert_eq!(row_count(contribution), BATCH * each, "{}", parameters.name(id));
        }
        self.0.push((parameters.name(id).to_owned(), owner));
        Ok(())
    }
}

/// Sums the rows of one sample and leaves out those of all others: on the host, in f64.
struct OneSample {
    sample: usize,
    sum: Accumulate,
}

impl GradientVisitor for OneSample {
    fn visit(
        &mut self,
        parameters: &Parameters,
        id: ParameterId,
        owner: RowOwner,
        contribution: &Contribution<'_>,
    ) -> Result<()> {
        let RowOwner::Samples { rows_per_sample } = owner else {
            panic!("{} mixes samples", parameters.name(id))
        };
        let own = |tensor: &Tensor, rows: usize| {
            let width = tensor.shape().last().copied().unwrap_or(1);
            let values = &tensor.as_slice::<f64>().unwrap()[self.sample * rows * width..][..rows * width];
            Tensor::new(&[rows, width], values.to_vec()).unwrap()
        };
        let d = own(
            contribution.rows(),
            if matches!(contribution, Contribution::PerSample { .. }) { 1 } else { rows_per_sample },
        );
        let (input, contribution) = match *contribution {
            Contribution::Product { input, .. } => (Some(own(input, rows_per_sample)), contribution),
            _ => (None, contribution),
        };
        let own = match (contribution, &input) {
            (Contribution::Product { .. }, Some(input)) => Contribution::Product { input, d_output: &d },
            (&Contribution::Sum { column, .. }, _) => Contribution::Sum { d_output: &d, column },
            (&Contribution::Gather { rows, .. }, _) => Contribution::Gather { d_output: &d, rows },
            _ => Contribution::PerSample { d_value: &d },
        };
        self.sum.visit(parameters, id, owner, &own)
    }
}

/// Whether a parameter belongs to what the samples share on a plain tape.
fn is_modulation(name: &str) -> bool {
    name.starts_with("lvl_embed_") || name.ends_with(".ada_gss")
}

#[test]
#[cfg_attr(not(feature = "emulator"), ignore = "needs the emulator")]
fn every_contribution_belongs_to_samples() {
    for level_embedding in [false, true] {
        for case in [Case::on_host(level_embedding), Case::on_device(level_embedding, DType::F32)] {
            for how in [APART, APART_AGAIN] {
                let mut owners = Owners::default();
                case.run(how, [1.0; BATCH], &mut owners).unwrap();
                for (name, owner) in &owners.0 {
                    assert!(matches!(owner, RowOwner::Samples { .. }), "{name} mixes samples");
                }
                for (_, name, _) in case.parameters.iter() {
                    assert!(owners.0.iter().any(|(visited, _)| visited == name), "{name} was not visited");
                }
                let of = |name: &str| {
                    let owner = owners.0.iter().find(|(visited, _)| visited == name).map(|(_, owner)| *owner);
                    owner.unwrap_or_else(|| panic!("{name} was not visited"))
                };
                assert_eq!(of("blocks.0.ada_gss"), RowOwner::Samples { rows_per_sample: 3 });
                assert_eq!(of("lvl_embed_proj.weight"), RowOwner::Samples { rows_per_sample: 3 });
            }
            // The plain tape shares the modulation, and nothing else.
            let mut owners = Owners::default();
            case.run(SHARED, [1.0; BATCH], &mut owners).unwrap();
            let table = |name: &str, owner: RowOwner| name == "lvl_embed.weight" && owner == RowOwner::Batch;
            for (name, owner) in &owners.0 {
                let shared = is_modulation(name) || table(name, *owner);
                assert_eq!(*owner == RowOwner::Batch, shared, "{name}");
            }
            assert!(owners.0.iter().any(|(name, owner)| table(name, *owner)));
        }
    }
}

#[test]
#[cfg_attr(not(feature = "emulator"), ignore = "needs the emulator")]
fn summed_gradients_are_those_of_the_shared_modulation() {
    for level_embedding in [false, true] {
        let mut cases = vec![(Case::on_host(level_embedding), 1e-12)];
        // In 16 bits a modulation that differs in its last bit may round activations differently.
        for (compute, bound) in [(DType::F32, 1e-5), (DType::Bf16, 2e-2), (DType::F16, 3e-3)] {
            cases.push((Case::on_device(level_embedding, compute), bound));
        }
        for (case, bound) in cases {
            let (expected_losses, expected) = case.gradients(SHARED);
            let (losses, found) = case.gradients(APART);
            let worst = case.worst(&found, &expected);
            let losses = relative_error(&losses, &expected_losses);
            let place = case.parameters.device().map(|_| case.parameters.compute_dtype());
            println!("{place:?}: losses {losses:.1e}, gradients {worst:.1e}");
            assert!(losses <= bound && worst <= bound, "{place:?}: losses {losses:e}, gradients {worst:e}");
        }
    }
}

#[test]
#[cfg_attr(not(feature = "emulator"), ignore = "needs the emulator")]
fn recomputing_changes_no_bit() {
    let cases = [Case::on_host(true), Case::on_device(true, DType::F32), Case::on_device(true, DType::Bf16)];
    for case in cases {
        let ((losses, kept), (losses_again, again)) = (case.gradients(APART), case.gradients(APART_AGAIN));
        assert_eq!(losses, losses_again);
        for ((_, name, _), (kept, again)) in case.parameters.iter().zip(kept.iter().zip(&again)) {
            let [kept, again] = [kept, again].map(|tensor| tensor.as_ref().unwrap().to_host().unwrap());
            assert_eq!(kept, again, "{name}");
        }
    }
}

#[test]
fn a_samples_gradient_out_of_a_batch_is_that_of_the_sample_alone() {
    for level_embedding in [false, true] {
        let case = Case { drop_path: DropPath::default(), ..Case::on_host(level_embedding) };
        let Case { proxy, parameters, batch, drop_path } = &case;
        for sample in 0..BATCH {
            let Inputs { input, text, codes } = alone(batch, sample);
            let mut tape = Tape::new(parameters);
            let mode = Mode::Train(drop_path);
            let loss = proxy.loss(&mut tape, &input, &text, &codes, 0.1, mode).unwrap().sample_loss;
            let mut expected = Accumulate::default();
            let seed = Tensor::new(&[1], vec![1.0]).unwrap();
            tape.backward(vec![(&loss, seed)], &[], &mut expected).unwrap();
            for how in [APART, APART_AGAIN] {
                let mut found = OneSample { sample, sum: Accumulate::default() };
                case.run(how, [1.0; BATCH], &mut found).unwrap();
                let worst = case.worst(&found.sum.gradients, &expected.gradients);
                println!("sample {sample}: {worst:.1e}");
                assert!(worst <= 1e-10, "sample {sample}: {worst:e}");
            }
        }
    }
}

/// What a plain tape refuses with the shared modulation.
#[test]
#[cfg_attr(not(feature = "emulator"), ignore = "needs the emulator")]
fn weighted_gradients_are_those_of_the_weighted_loss() {
    let weights = [0.2, 1.5, -0.7];
    for (case, bound) in [(Case::on_host(true), 1e-12), (Case::on_device(true, DType::F32), 1e-5)] {
        let mut plain = Accumulate::default();
        case.run(SHARED, weights, &mut plain).unwrap();
        let weighted = || {
            let weights = case.near(&Tensor::new(&[BATCH], weights.to_vec()).unwrap());
            Ghost::new(BATCH).with_weights(weights).with_repeated(case.proxy.repeated())
        };
        let mut found = weighted();
        case.run(APART, [1.0; BATCH], &mut found).unwrap();
        let worst = case.worst(&found.finish(&case.parameters).unwrap().gradients, &plain.gradients);
        assert!(worst <= bound, "gradients differ by {worst:e}");
        let refused = case.run(SHARED, [1.0; BATCH], &mut weighted()).unwrap_err().to_string();
        assert!(refused.contains("mixes the samples"), "{refused}");
    }
}
