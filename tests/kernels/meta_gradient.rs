//! Quantities of the gradient of each sample against plain loops in f64, on the emulator and, where there is one, on a GPU.

use crate::device::{Number, close, noise, rounded, test_devices, upload};
use alchemist_engine::engine::{
    autograd::contributions::cuda::{Columns, GatherIndex},
    cuda::{Buffer, Device, DeviceFloat},
    ops::meta_gradient::cuda::{self as kernels, DeviceRequest, ProductSizes, WeightedSum},
};
use half::{bf16, f16};

/// What is asked for in a case.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    products: bool,
    norms: bool,
    sum: bool,
    accumulate: bool,
}

const EVERYTHING: Wanted = Wanted { products: true, norms: true, sum: true, accumulate: false };

/// A batch of a layer and what a plain loop finds of it.
struct Layer {
    sizes: ProductSizes,
    input: Vec<f64>,
    d_output: Vec<f64>,
    direction: Vec<f64>,
    weights: Vec<f64>,
    before: Vec<f64>,
}

/// Products, squared norms and the weighted sum.
type Found = [Vec<f64>; 3];

impl Layer {
    fn new<T: Number>([samples, rows, outputs, inputs]: [usize; 4]) -> Self {
        let sizes = ProductSizes { samples, rows, outputs, inputs };
        Self {
            sizes,
            input: rounded::<T>(&noise(samples * rows * inputs, 1)),
            d_output: rounded::<T>(&noise(samples * rows * outputs, 2)),
            direction: rounded::<f32>(&noise(outputs * inputs, 3)),
            weights: rounded::<f32>(&noise(samples, 4)),
            before: rounded::<f32>(&noise(outputs * inputs, 5)),
        }
    }

    /// The samples in another order, or some of them.
    fn pick(&self, order: &[usize]) -> Self {
        let ProductSizes { rows, outputs, inputs, .. } = self.sizes;
        let part = |values: &[f64], each: usize| {
            order.iter().flat_map(|&sample| values[sample * each..(sample + 1) * each].to_vec()).collect()
        };
        Self {
            sizes: ProductSizes { samples: order.len(), ..self.sizes },
            input: part(&self.input, rows * inputs),
            d_output: part(&self.d_output, rows * outputs),
            weights: part(&self.weights, 1),
            direction: self.direction.clone(),
            before: self.before.clone(),
        }
    }

    /// `[S, O, I]`
    fn gradients(&self) -> Vec<f64> {
        let ProductSizes { samples, rows, outputs, inputs } = self.sizes;
        let mut gradients = vec![0.0; samples * outputs * inputs];
        for row in 0..samples * rows {
            let gradient = &mut gradients[row / rows * outputs * inputs..][..outputs * inputs];
            let x = &self.input[row * inputs..][..inputs];
            for (to, b) in gradient.chunks_mut(inputs).zip(&self.d_output[row * outputs..]) {
                for (to, x) in to.iter_mut().zip(x) {
                    *to += b * x;
                }
            }
        }
        gradients
    }

    fn expected(&self, gradients: &[f64], accumulate: bool) -> Found {
        let gradients: Vec<&[f64]> = gradients.chunks(self.direction.len()).collect();
        let dot = |left: &[f64], right: &[f64]| left.iter().zip(right).map(|(l, r)| l * r).sum::<f64>();
        let mut sum = if accumulate { self.before.clone() } else { vec![0.0; self.direction.len()] };
        for (gradient, weight) in gradients.iter().zip(&self.weights) {
            for (to, value) in sum.iter_mut().zip(*gradient) {
                *to += weight * value;
            }
        }
        [
            gradients.iter().map(|gradient| dot(gradient, &self.direction)).collect(),
            gradients.iter().map(|gradient| dot(gradient, gradient)).collect(),
            sum,
        ]
    }

    fn rows<T: Number>(&self, device: &Device) -> [Buffer<T>; 2] {
        [upload(device, &self.input), upload(device, &self.d_output)]
    }

    /// Does `work` with what is wanted, and gives what it wrote.
    fn run(
        &self,
        device: &Device,
        wanted: Wanted,
        work: impl FnOnce(DeviceRequest<'_>) -> alchemist_engine::Result<()>,
    ) -> [Option<Buffer<f32>>; 3] {
        let numbers = |is: bool| is.then(|| device.uninitialized::<f32>(self.weights.len()).unwrap());
        let (mut products, mut norms) = (numbers(wanted.products), numbers(wanted.norms));
        let mut sum = wanted.sum.then(|| match wanted.accumulate {
            true => upload::<f32>(device, &self.before),
            false => device.uninitialized(self.before.len()).unwrap(),
        });
        let direction = wanted.products.then(|| upload::<f32>(device, &self.direction));
        let weights = upload::<f32>(device, &self.weights);
        work(DeviceRequest {
            direction: direction.as_ref(),
            products: products.as_mut(),
            squared_norms: norms.as_mut(),
            sum: sum.as_mut().map(|sum| WeightedSum {
                sum,
                weights: &weights,
                accumulate: wanted.accumulate,
            }),
        })
        .unwrap();
        [products, norms, sum]
    }

    /// The bits of a run that asks for everything.
    fn bits(
        &self,
        device: &Device,
        work: impl FnOnce(DeviceRequest<'_>) -> alchemist_engine::Result<()>,
    ) -> [Vec<u32>; 3] {
        self.run(device, EVERYTHING, work)
            .map(|buffer| buffer.unwrap().to_host().unwrap().iter().map(|value| value.to_bits()).collect())
    }
}

#[track_caller]
fn expect<T: Number>(what: &str, found: &[Option<Buffer<f32>>; 3], expected: &Found) {
    for ((name, found), expected) in ["products", "squared norms", "the sum"].iter().zip(found).zip(expected)
    {
        if let Some(found) = found {
            close::<f32>(&format!("{name} by {what} in {}", T::SUFFIX), found, expected, T::BOUND);
        }
    }
}

fn combinations() -> Vec<Wanted> {
    (0..8)
        .map(|bits| Wanted {
            products: bits & 1 != 0,
            norms: bits & 2 != 0,
            sum: bits & 4 != 0,
            accumulate: bits == 6,
        })
        .collect()
}

fn in_tile_case<T: Number + DeviceFloat>(device: &Device) {
    for (at, shape) in [[3, 5, 33, 17], [2, 1, 8, 24], [1, 30, 130, 72], [2, 70, 128, 136], [5, 2, 1, 1]]
        .into_iter()
        .enumerate()
    {
        let layer = Layer::new::<T>(shape);
        let gradients = layer.gradients();
        let [input, d_output] = layer.rows::<T>(device);
        let asked =
            if at == 0 { combinations() } else { vec![Wanted { accumulate: at % 2 == 0, ..EVERYTHING }] };
        for wanted in asked {
            let expected = layer.expected(&gradients, wanted.accumulate);
            let found =
                layer.run(device, wanted, |asked| kernels::in_tile(asked, &input, &d_output, layer.sizes));
            expect::<T>(&format!("in_tile of {shape:?}, {wanted:?}"), &found, &expected);
        }
    }
}

#[test]
fn gradients_in_the_tile_match_plain_loops() {
    in_all_types!(in_tile_case);
}

fn without_gradients_case<T: Number + DeviceFloat>(device: &Device) {
    for shape in [[3, 5, 33, 17], [2, 1, 130, 24], [1, 70, 8, 72], [2, 3, 7, 136], [1, 130, 66, 3]] {
        let layer = Layer::new::<T>(shape);
        let sizes = layer.sizes;
        let gradients = layer.gradients();
        let [input, d_output] = layer.rows::<T>(device);
        let work = |asked: DeviceRequest<'_>| {
            kernels::projected(asked.products.unwrap(), asked.direction.unwrap(), &input, &d_output, sizes)?;
            kernels::gram(asked.squared_norms.unwrap(), &input, &d_output, sizes)
        };
        let wanted = Wanted { sum: false, ..EVERYTHING };
        let found = layer.run(device, wanted, work);
        expect::<T>(&format!("rows of {shape:?}"), &found, &layer.expected(&gradients, false));
        for accumulate in [false, true] {
            let wanted = Wanted { accumulate, ..EVERYTHING };
            let found =
                layer.run(device, wanted, |asked| kernels::meta_gradient(asked, &input, &d_output, sizes));
            let expected = layer.expected(&gradients, accumulate);
            expect::<T>(&format!("the shortest way for {shape:?}"), &found, &expected);
        }
    }
}

#[test]
fn products_and_norms_without_gradients_match_plain_loops() {
    in_all_types!(without_gradients_case);
}

/// Batches in other orders and parts give each sample the same bits; so do launches of few samples at a time, which give
/// the sum's too.
fn same_bits_case<T: Number + DeviceFloat>(device: &Device) {
    let layer = Layer::new::<T>([7, 19, 40, 24]);
    let run = |layer: &Layer, most: usize| {
        let [input, d_output] = layer.rows::<T>(device);
        layer.bits(device, |asked| kernels::in_tile_within(asked, &input, &d_output, layer.sizes, most))
    };
    let all = run(&layer, kernels::MOST_PARTIALS);
    for most in [0, 8] {
        assert_eq!(run(&layer, most), all, "at most {most} numbers at once");
    }
    for order in [vec![6, 2, 0, 5, 4, 1, 3], vec![3], vec![1, 6], vec![5, 5, 2, 5]] {
        let some = run(&layer.pick(&order), kernels::MOST_PARTIALS);
        for quantity in 0..2 {
            let expected: Vec<u32> = order.iter().map(|&sample| all[quantity][sample]).collect();
            assert_eq!(some[quantity], expected, "{order:?}");
        }
    }
}

/// The same for samples of few rows, whose gradients are not formed.
fn same_bits_without_gradients_case<T: Number + DeviceFloat>(device: &Device) {
    for shape in [[5, 1, 70, 40], [3, 7, 20, 24]] {
        let layer = Layer::new::<T>(shape);
        let run = |layer: &Layer| {
            let [input, d_output] = layer.rows::<T>(device);
            let wanted = Wanted { sum: false, ..EVERYTHING };
            let [products, norms, _] = layer.run(device, wanted, |asked| {
                let (products, direction) = (asked.products.unwrap(), asked.direction.unwrap());
                kernels::projected(products, direction, &input, &d_output, layer.sizes)?;
                kernels::gram(asked.squared_norms.unwrap(), &input, &d_output, layer.sizes)
            });
            [products, norms].map(|buffer| buffer.unwrap().to_host().unwrap())
        };
        let all = run(&layer);
        for order in [vec![2, 0, 1], vec![1], vec![2, 2, 0, 1]] {
            let some = run(&layer.pick(&order));
            for (some, all) in some.iter().zip(&all) {
                let expected = order.iter().map(|&sample| all[sample].to_bits());
                assert!(some.iter().map(|value| value.to_bits()).eq(expected), "{order:?}");
            }
        }
    }
}

#[test]
fn a_sample_has_the_same_bits_in_any_batch() {
    in_all_types!(same_bits_without_gradients_case);
    in_all_types!(same_bits_case);
}

/// Only a Hopper card runs its kernel: its results are those of the kernel for all cards, and as independent of the batch.
fn hopper_case<T: Number + DeviceFloat>(device: &Device) {
    for shape in [
        [3, 64, 128, 128],
        [2, 33, 8, 8],
        [5, 77, 72, 200],
        [2, 130, 264, 64],
        [3, 680, 136, 1024],
        [40, 65, 1024, 256],
        // Tiles of 192 along the outputs, and along the inputs in 2 chunks; those above have 128.
        [2, 65, 3064, 1016],
        [9, 680, 1016, 1528],
    ] {
        let layer = Layer::new::<T>(shape);
        assert!(kernels::is_for_hopper(device, layer.sizes), "{shape:?}");
        let [input, d_output] = layer.rows::<T>(device);
        for wanted in combinations() {
            let found =
                layer.run(device, wanted, |asked| kernels::in_tile(asked, &input, &d_output, layer.sizes));
            let expected = layer.run(device, wanted, |asked| {
                kernels::in_tile_portable(asked, &input, &d_output, layer.sizes)
            });
            for ((name, found), expected) in ["products", "norms", "the sum"].iter().zip(found).zip(expected)
            {
                if let (Some(found), Some(expected)) = (found, expected) {
                    let expected: Vec<f64> = expected.to_host().unwrap().into_iter().map(f64::from).collect();
                    // Both add the same products in f32, in another order.
                    close::<f32>(&format!("{name} of {shape:?}, {wanted:?}"), &found, &expected, 1e-4);
                }
            }
        }
        let run = |layer: &Layer, most: usize| {
            let [input, d_output] = layer.rows::<T>(device);
            layer.bits(device, |asked| kernels::in_tile_within(asked, &input, &d_output, layer.sizes, most))
        };
        let all = run(&layer, kernels::MOST_PARTIALS);
        assert_eq!(run(&layer, 0), all, "{shape:?}, few numbers at once");
        let some = run(&layer.pick(&[1, 0]), kernels::MOST_PARTIALS);
        for quantity in 0..2 {
            assert_eq!(some[quantity], [all[quantity][1], all[quantity][0]], "{shape:?}");
        }
    }
}

#[test]
fn the_kernel_for_hopper_agrees_with_the_one_for_all_cards() {
    for device in test_devices() {
        if device.facts().capability == (9, 0) {
            hopper_case::<bf16>(&device);
            hopper_case::<f16>(&device);
        } else {
            println!("SKIP: {} is no Hopper card, which alone has this kernel", device.facts().name);
        }
    }
}

fn per_sample_case<T: Number + DeviceFloat>(device: &Device) {
    for (at, (samples, count)) in [(3, 5), (1, 1), (4, 10_000), (2, 16_384)].into_iter().enumerate() {
        let layer = Layer::new::<T>([samples, 1, 1, count]);
        let values = &layer.input;
        let d = upload::<T>(device, values);
        let asked = if at == 0 { combinations() } else { vec![EVERYTHING] };
        for wanted in asked {
            let found = layer.run(device, wanted, |asked| kernels::per_sample(asked, &d));
            let expected = layer.expected(values, wanted.accumulate);
            expect::<T>(&format!("per_sample of {samples} by {count}, {wanted:?}"), &found, &expected);
        }
        let all = layer.bits(device, |asked| kernels::per_sample(asked, &d));
        let last = layer.pick(&[samples - 1]);
        let d = upload::<T>(device, &last.input);
        let alone = last.bits(device, |asked| kernels::per_sample(asked, &d));
        for quantity in 0..2 {
            assert_eq!(alone[quantity][0], all[quantity][samples - 1]);
        }
    }
}

#[test]
fn gradients_that_are_there_match_plain_loops() {
    in_all_types!(per_sample_case);
}

fn row_sums_case<T: Number>(device: &Device) {
    for (samples, rows, width, first, count) in
        [(3, 5, 33, 2, 17), (2, 1, 8, 0, 8), (1, 90, 70, 70 - 33, 33), (4, 2, 1, 0, 1)]
    {
        let d = rounded::<T>(&noise(samples * rows * width, 1));
        let mut expected = vec![0.0; samples * count];
        for (row, values) in d.chunks(width).enumerate() {
            for (to, value) in expected[row / rows * count..][..count].iter_mut().zip(&values[first..]) {
                *to += value;
            }
        }
        let mut sums = device.uninitialized(samples * count).unwrap();
        let columns = Columns { width, first };
        kernels::sample_column_sums(&mut sums, &upload::<T>(device, &d), columns, samples).unwrap();
        close::<f32>("sums of columns", &sums, &expected, 1e-5);
    }
    for (samples, index, rows, columns) in [
        (3, vec![1, u32::MAX, 1, 0, 3], 5, 33),
        (1, vec![0], 1, 1),
        (2, (0..40).map(|token| token % 3).collect(), 4, 8),
    ] {
        let tokens = index.len();
        let d = rounded::<T>(&noise(samples * tokens * columns, 2));
        let mut expected = vec![0.0; samples * rows * columns];
        for (at, values) in d.chunks(columns).enumerate() {
            let (sample, row) = (at / tokens, index[at % tokens]);
            if row == u32::MAX {
                continue;
            }
            let to = &mut expected[(sample * rows + row as usize) * columns..][..columns];
            for (to, value) in to.iter_mut().zip(values) {
                *to += value;
            }
        }
        let index = GatherIndex::new(device, &index, rows).unwrap();
        let mut tables = device.uninitialized(samples * rows * columns).unwrap();
        kernels::sample_gather_sums(&mut tables, &upload::<T>(device, &d), &index, samples).unwrap();
        close::<f32>("sums into tables", &tables, &expected, 1e-5);
    }
}

#[test]
fn sums_over_the_rows_of_each_sample_match_plain_loops() {
    in_all_types!(row_sums_case);
}

#[test]
fn the_direction_as_the_optimizer_sees_it_matches_a_plain_loop() {
    for device in test_devices() {
        for (count, inverse, epsilon) in [(1, 1.25, 1e-8), (37, 20.0, 1e-6), (1000, 0.0, 1e-8)] {
            let v = rounded::<f32>(&noise(count, 1));
            let second: Vec<f64> = rounded::<f32>(&noise(count, 2)).iter().map(|value| value.abs()).collect();
            let expected: Vec<f64> = v
                .iter()
                .zip(&second)
                .map(
                    |(v, second)| {
                        if inverse == 0.0 { 0.0 } else { v / ((second * inverse).sqrt() + epsilon) }
                    },
                )
                .collect();
            let mut to = device.uninitialized(count).unwrap();
            let factors = upload::<f32>(&device, &[inverse, epsilon]);
            let [v, second] = [&v, &second].map(|values| upload::<f32>(&device, values));
            kernels::precondition(&mut to, &v, &second, &factors).unwrap();
            close::<f32>("the direction", &to, &expected, 1e-5);
        }
    }
}

#[test]
fn totals_match_a_plain_loop() {
    for device in test_devices() {
        for (rows, samples) in [(1, 1), (5, 3), (700, 40)] {
            let matrix = rounded::<f32>(&noise(rows * samples, 1));
            let mut expected = vec![0.0; samples];
            for (at, value) in matrix.iter().enumerate() {
                expected[at % samples] += value;
            }
            let mut to = device.uninitialized(samples).unwrap();
            kernels::totals(&mut to, &upload(&device, &matrix)).unwrap();
            close::<f32>("totals", &to, &expected, 1e-5);
        }
    }
}

#[test]
fn sizes_that_do_not_fit_are_errors() {
    for device in test_devices() {
        let layer = Layer::new::<bf16>([2, 3, 8, 8]);
        let [input, d_output] = layer.rows::<bf16>(&device);
        let [short, long] = [2, 65].map(|count| device.zeros::<f32>(count).unwrap());
        let (mut products, mut wrong) = (device.zeros::<f32>(2).unwrap(), device.zeros::<f32>(3).unwrap());
        let message = |asked: DeviceRequest<'_>, sizes: ProductSizes| {
            kernels::in_tile(asked, &input, &d_output, sizes).unwrap_err().to_string()
        };
        let sizes = layer.sizes;
        let nothing = ProductSizes { rows: 0, ..sizes };
        assert!(message(DeviceRequest::default(), nothing).contains("must not be 0"));
        let more = ProductSizes { samples: 3, ..sizes };
        assert!(message(DeviceRequest::default(), more).contains("the input has 48"));
        let lonely = DeviceRequest { products: Some(&mut products), ..DeviceRequest::default() };
        assert!(message(lonely, sizes).contains("requested together"));
        let other = DeviceRequest {
            products: Some(&mut products),
            direction: Some(&long),
            ..DeviceRequest::default()
        };
        assert!(message(other, sizes).contains("the direction has 65"));
        let other = DeviceRequest { squared_norms: Some(&mut wrong), ..DeviceRequest::default() };
        assert!(message(other, sizes).contains("squared norms has 3"));
        let sum = WeightedSum { sum: &mut wrong, weights: &short, accumulate: false };
        assert!(
            message(DeviceRequest { sum: Some(sum), ..DeviceRequest::default() }, sizes)
                .contains("the sum has 3")
        );
        let asked = DeviceRequest { squared_norms: Some(&mut wrong), ..DeviceRequest::default() };
        assert!(kernels::per_sample(asked, &short).is_err());
        assert!(kernels::gram(&mut wrong, &input, &d_output, sizes).is_err());
        assert!(kernels::projected(&mut products, &long, &input, &d_output, sizes).is_err());
        let other = DeviceRequest { products: Some(&mut products), ..DeviceRequest::default() };
        assert!(kernels::meta_gradient(other, &input, &d_output, sizes).is_err());
        let columns = Columns { width: 8, first: 1 };
        assert!(kernels::sample_column_sums(&mut products, &d_output, columns, 5).is_err());
        let mut eight = device.zeros::<f32>(16).unwrap();
        assert!(kernels::sample_column_sums(&mut eight, &d_output, columns, 2).is_err());
        assert!(kernels::totals(&mut products, &long).is_err());
        assert!(kernels::precondition(&mut products, &short, &short, &long).is_err());
        let index = GatherIndex::new(&device, &[0, 0], 1).unwrap();
        assert!(kernels::sample_gather_sums(&mut eight, &d_output, &index, 2).is_err());
    }
}
