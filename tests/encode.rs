//! The encoders: parity of the pyramid quantizer with the released code, the PCA tokenizer, the hashed words.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use alchemist_engine::{
    Error, Result,
    encode::{
        ImageTokenizer, TextEncoder,
        hashed::HashedWords,
        load_image_tokenizer, load_text_encoder,
        pca::{FitReport, PcaSettings, PcaTokenizer},
        saved,
    },
    engine::{
        DType, Purpose, Random, Tensor,
        ops::pyramid::{
            PyramidQuantizer, Reach,
            cpu::resample::{Area, Bicubic},
        },
    },
};

type Tensors = BTreeMap<String, Tensor>;

fn fixture(folder: &str, file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(folder).join(file)
}

fn manifest(folder: &str) -> serde_json::Value {
    serde_json::from_str(&fs::read_to_string(fixture(folder, "manifest.json")).unwrap()).unwrap()
}

fn sizes(value: &serde_json::Value) -> Vec<usize> {
    value.as_array().unwrap().iter().map(|size| size.as_u64().unwrap() as usize).collect()
}

/// The largest difference over the largest magnitude expected.
fn relative_error(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.shape(), expected.shape());
    let (found, expected) = (found.to_f64_vec().unwrap(), expected.to_f64_vec().unwrap());
    let largest = expected.iter().fold(0f64, |largest, value| largest.max(value.abs()));
    assert!(found.iter().all(|value| value.is_finite()));
    found.iter().zip(&expected).fold(0f64, |worst, (a, b)| worst.max((a - b).abs())) / largest
}

/// Far below the 1e-4 asked for: what is left is the order of f32 sums.
const TOLERANCE: f64 = 3e-6;

fn check(worst: &mut f64, what: &str, found: &Tensor, expected: &Tensor) {
    let error = relative_error(found, expected);
    assert!(error < TOLERANCE, "{what}: {error:e}");
    *worst = worst.max(error);
}

#[test]
fn quantizer_gives_the_codes_and_features_of_the_released_code() {
    let manifest = manifest("quant_tiny");
    let patch_nums = sizes(&manifest["config"]["patch_nums"]);
    let ratio = manifest["config"]["quant_resi"].as_f64().unwrap() as f32;
    let weights = saved::read_tensors(&fixture("quant_tiny", "weights.safetensors")).unwrap();
    let io = saved::read_tensors(&fixture("quant_tiny", "io.safetensors")).unwrap();
    let quantizer = PyramidQuantizer::from_tensors(&patch_nums, &weights, "quantize.", ratio).unwrap();
    assert_eq!(quantizer.phi_index(), sizes(&manifest["phi_index_per_scale"]));
    assert_eq!(quantizer.vocabulary(), manifest["config"]["V"].as_u64().unwrap() as usize);

    let mut worst = 0.0;
    let features = &io["f_BChw"];
    let (codes, reconstructions) = quantizer.encode_with_reconstructions(features).unwrap();
    assert_eq!(codes, io["idx_BL"]);
    let last = patch_nums.len() - 1;
    for (scale, found) in reconstructions.iter().enumerate() {
        check(&mut worst, "f_hat", found, &io[&format!("f_hat_{scale}")]);
        check(&mut worst, "embed_to_fhat", found, &io[&format!("embed_to_fhat_{scale}")]);
    }
    check(&mut worst, "reconstruct", &quantizer.reconstruct(&codes).unwrap(), &io[&format!("f_hat_{last}")]);
    check(&mut worst, "input", &quantizer.input(&codes).unwrap(), &io["x_BLCv_wo_first_l"]);
    // What a rater sees: the released reconstructions up to each scale itself, averaged to its side.
    let (side, channels) = (patch_nums[last], quantizer.channels());
    let mut seen = vec![Vec::new(); features.dim(0)];
    for (scale, &small) in patch_nums.iter().enumerate().skip(1) {
        let maps = io[&format!("f_hat_{scale}")].to_f64_vec().unwrap();
        for (sample, rows) in seen.iter_mut().enumerate() {
            for cell in 0..small * small {
                let window = |at: usize| (at * side / small)..((at + 1) * side).div_ceil(small);
                for channel in 0..channels {
                    let places = window(cell / small)
                        .flat_map(|y| window(cell % small).map(move |x| y * side + x))
                        .map(|place| maps[(sample * channels + channel) * side * side + place]);
                    let values: Vec<f64> = places.collect();
                    rows.push((values.iter().sum::<f64>() / values.len() as f64) as f32);
                }
            }
        }
    }
    let through = quantizer.input_reaching(&codes, Reach::Through).unwrap();
    let expected = Tensor::new(through.shape(), seen.concat()).unwrap();
    check(&mut worst, "input through each scale", &through, &expected);

    let mut running = Tensor::zeros(features.shape(), DType::F32);
    for scale in 0..=last {
        let embedded = quantizer.embed(scale, &io[&format!("idx_{scale}")]).unwrap();
        let next = quantizer.next_input(scale, &mut running, &embedded).unwrap();
        check(&mut worst, "next_input", &next, &io[&format!("ar_next{scale}")]);
        check(&mut worst, "running", &running, &io[&format!("f_hat_{scale}")]);
    }
    println!("quant_tiny: codes equal, worst relative error {worst:.1e}");
}

#[test]
fn quantizer_follows_the_released_code_through_ten_scales() {
    let manifest = manifest("quant_multi");
    let all = saved::read_tensors(&fixture("quant_multi", "all.safetensors")).unwrap();
    let mut worst = 0.0;
    let cases = manifest["cases"].as_object().unwrap();
    assert!(!cases.is_empty());
    for (case, sizes_of) in cases {
        let patch_nums = sizes(&sizes_of["patch_nums"]);
        let quantizer = PyramidQuantizer::from_tensors(&patch_nums, &all, "weights.quantize.", 0.5).unwrap();
        assert_eq!(quantizer.phi_index(), sizes(&sizes_of["phi_index_per_scale"]));
        let codes = quantizer.encode(&all[&format!("{case}.f_BChw")]).unwrap();
        assert_eq!(codes, all[&format!("{case}.idx_BL")], "{case}");
        let input = quantizer.input(&codes).unwrap();
        check(&mut worst, case, &input, &all[&format!("{case}.x_BLCv_wo_first_l")]);
        let reconstructed = quantizer.reconstruct(&codes).unwrap();
        check(&mut worst, case, &reconstructed, &all[&format!("{case}.f_hat_last")]);
    }
    println!("quant_multi: codes equal, worst relative error {worst:.1e}");
}

/// `[1, C, H, H]` to `[H, H, C]` and back.
fn channels_last(tensor: &Tensor) -> Vec<f32> {
    let (channels, cells) = (tensor.dim(1), tensor.dim(2) * tensor.dim(3));
    let values = tensor.as_slice::<f32>().unwrap();
    (0..cells * channels).map(|at| values[at % channels * cells + at / channels]).collect()
}

#[test]
fn resampling_gives_the_vectors_of_pytorch() {
    let io = saved::read_tensors(&fixture("quant_tiny", "io.safetensors")).unwrap();
    let mut cases = 0;
    let mut worst = 0.0;
    for (name, expected) in &io {
        let Some((kind, side)) = name.split_once("_out_") else { continue };
        let input = if kind == "area" { &io["area_in"] } else { &io[&format!("{kind}_in_{side}")] };
        let (channels, from, to) = (input.dim(1), input.dim(2), expected.dim(2));
        let mut found = vec![0f32; to * to * channels];
        if kind == "area" {
            Area::new(from, to).pool(&channels_last(input), channels, &mut found);
        } else {
            Bicubic::new(from, to).resize(&channels_last(input), channels, &mut Vec::new(), &mut found);
        }
        let expected = Tensor::new(&[found.len()], channels_last(expected)).unwrap();
        check(&mut worst, name, &Tensor::new(&[found.len()], found).unwrap(), &expected);
        cases += 1;
    }
    assert!(cases >= 7, "{cases}");
    println!("resampling: {cases} vectors, worst relative error {worst:.1e}");
}

fn noise(shape: &[usize], index: u64) -> Tensor {
    let mut random = Random::new(11, Purpose::Test, index);
    let values = (0..shape.iter().product()).map(|_| random.normal() as f32).collect();
    Tensor::new(shape, values).unwrap()
}

/// One sample of a batch, as a batch of one.
fn sample(tensor: &Tensor, at: usize) -> Tensor {
    let length = tensor.len() / tensor.dim(0);
    let mut shape = tensor.shape().to_vec();
    shape[0] = 1;
    match tensor.dtype() {
        DType::U32 => {
            Tensor::new(&shape, tensor.as_slice::<u32>().unwrap()[at * length..][..length].to_vec()).unwrap()
        }
        _ => {
            Tensor::new(&shape, tensor.as_slice::<f32>().unwrap()[at * length..][..length].to_vec()).unwrap()
        }
    }
}

fn released_like() -> PyramidQuantizer {
    let mut tensors = Tensors::new();
    tensors.insert("embedding.weight".into(), noise(&[50, 6], 0).cast(DType::F16).unwrap());
    for k in 0..4 {
        tensors.insert(format!("quant_resi.qresi_ls.{k}.weight"), noise(&[6, 6, 3, 3], 10 + k));
        tensors.insert(format!("quant_resi.qresi_ls.{k}.bias"), noise(&[6], 20 + k));
    }
    PyramidQuantizer::from_tensors(&[1, 2, 3, 5, 7], &tensors, "", 0.5).unwrap()
}

#[test]
fn a_sample_does_not_depend_on_its_batch() {
    let quantizer = released_like();
    let features = noise(&[5, 6, 7, 7], 1);
    let (codes, each) = quantizer.encode_with_reconstructions(&features).unwrap();
    let (input, whole) = (quantizer.input(&codes).unwrap(), quantizer.reconstruct(&codes).unwrap());
    assert_eq!(whole, each[4]);
    for at in 0..5 {
        let alone = quantizer.encode(&sample(&features, at)).unwrap();
        assert_eq!(alone, sample(&codes, at));
        assert_eq!(quantizer.input(&alone).unwrap(), sample(&input, at));
        assert_eq!(quantizer.reconstruct(&alone).unwrap(), sample(&whole, at));
    }
    let empty = quantizer.encode(&Tensor::zeros(&[0, 6, 7, 7], DType::F32)).unwrap();
    assert_eq!(empty.shape(), [0, 88]);
    assert_eq!(quantizer.input(&empty).unwrap().shape(), [0, 87, 6]);
}

#[test]
fn every_form_of_sharing_the_convolutions_is_read() {
    let features = noise(&[1, 3, 2, 2], 1);
    let mut tensors = Tensors::new();
    tensors.insert("q.embedding.weight".into(), noise(&[9, 3], 0));
    let build =
        |tensors: &Tensors, ratio| PyramidQuantizer::from_tensors(&[1, 2], tensors, "q.", ratio).unwrap();
    let plain = build(&tensors, 0.5).encode_with_reconstructions(&features).unwrap();
    for stem in ["q.quant_resi.qresi_ls.0", "q.quant_resi.0", "q.quant_resi.qresi"] {
        let mut tensors = tensors.clone();
        tensors.insert(format!("{stem}.weight"), noise(&[3, 3, 3, 3], 2));
        let missing = PyramidQuantizer::from_tensors(&[1, 2], &tensors, "q.", 0.5).unwrap_err().to_string();
        assert!(missing.contains(&format!("{stem}.bias")), "{missing}");
        tensors.insert(format!("{stem}.bias"), noise(&[3], 3));
        let convolved = build(&tensors, 0.5).encode_with_reconstructions(&features).unwrap();
        assert!(relative_error(&convolved.1[1], &plain.1[1]) > 0.01, "{stem} was not used");
        assert_eq!(build(&tensors, 0.0).encode_with_reconstructions(&features).unwrap(), plain);
    }
}

fn message<T>(result: Result<T>) -> String {
    match result {
        Ok(_) => panic!("this should have been refused"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn quantizer_refuses_what_does_not_fit() {
    let codebook = noise(&[4, 3], 0);
    let new = |patch_nums: &[usize]| message(PyramidQuantizer::new(patch_nums, &codebook, Vec::new()));
    assert!(new(&[]).contains("empty"));
    for patch_nums in [&[1, 2, 2][..], &[2, 1], &[0, 1]] {
        assert!(new(patch_nums).contains("increasing"), "{patch_nums:?}");
    }
    for shape in [&[4][..], &[0, 3], &[4, 0]] {
        let codebook = Tensor::zeros(shape, DType::F32);
        assert!(message(PyramidQuantizer::new(&[1], &codebook, Vec::new())).contains("codebook"));
    }
    let mut broken = codebook.clone();
    broken.as_mut_slice::<f32>().unwrap()[7] = f32::NAN;
    assert!(message(PyramidQuantizer::new(&[1], &broken, Vec::new())).contains("code 2"));
    assert!(
        message(PyramidQuantizer::from_tensors(&[1], &Tensors::new(), "p.", 0.5))
            .contains("p.embedding.weight")
    );

    let quantizer = PyramidQuantizer::new(&[1, 2], &codebook, Vec::new()).unwrap();
    let features = |shape: &[usize]| message(quantizer.encode(&Tensor::zeros(shape, DType::F32)));
    assert!(features(&[1, 3, 3, 3]).contains("[B, 3, 2, 2]"));
    assert!(features(&[1, 2, 2, 2]).contains("[1, 2, 2, 2]"));
    assert!(features(&[12]).contains("[12]"));
    assert!(message(quantizer.encode(&Tensor::zeros(&[1, 3, 2, 2], DType::F64))).contains("F64"));
    let mut infinite = Tensor::zeros(&[2, 3, 2, 2], DType::F32);
    infinite.as_mut_slice::<f32>().unwrap()[13] = f32::INFINITY;
    assert!(message(quantizer.encode(&infinite)).contains("sample 1"));

    let codes = Tensor::new(&[2, 5], vec![0u32, 1, 2, 3, 0, 0, 1, 4, 3, 0]).unwrap();
    for found in [
        message(quantizer.input(&codes)),
        message(quantizer.reconstruct(&codes)),
        message(quantizer.reconstruct_each(&codes)),
    ] {
        assert!(found.contains("code 4 (sample 1, token 2)") && found.contains("4 codes"), "{found}");
    }
    assert!(message(quantizer.input(&Tensor::zeros(&[2, 4], DType::U32))).contains("[B, 5]"));
    assert!(message(quantizer.embed(2, &codes)).contains("no scale 2"));
    assert!(message(quantizer.embed(1, &codes)).contains("4 codes"));
    let mut running = Tensor::zeros(&[1, 3, 2, 2], DType::F32);
    let embedded = Tensor::zeros(&[1, 3, 2, 2], DType::F32);
    assert!(message(quantizer.next_input(0, &mut running, &embedded)).contains("scale 0"));
    assert!(message(quantizer.next_input(9, &mut running, &embedded)).contains("no scale 9"));
}

/// Drawn images: a smooth background, some rectangles and discs.
fn drawn(count: usize, side: usize, seed: u64) -> Tensor {
    let mut values = Vec::with_capacity(count * 3 * side * side);
    for image in 0..count {
        let mut random = Random::new(seed, Purpose::Test, image as u64);
        let mut pixels = vec![[0f64; 3]; side * side];
        let corner: [[f64; 3]; 2] = std::array::from_fn(|_| std::array::from_fn(|_| random.uniform()));
        for (at, pixel) in pixels.iter_mut().enumerate() {
            let share = (at / side + at % side) as f64 / (2 * side) as f64;
            *pixel = std::array::from_fn(|c| corner[0][c] * (1.0 - share) + corner[1][c] * share);
        }
        for _ in 0..4 {
            let color: [f64; 3] = std::array::from_fn(|_| random.uniform());
            let (x, y) = (random.uniform() * side as f64, random.uniform() * side as f64);
            let size = (0.1 + 0.2 * random.uniform()) * side as f64;
            let disc = random.below(2) == 0;
            for (at, pixel) in pixels.iter_mut().enumerate() {
                let (dx, dy) = ((at % side) as f64 - x, (at / side) as f64 - y);
                if if disc { dx.hypot(dy) < size } else { dx.abs().max(dy.abs()) < size } {
                    *pixel = color;
                }
            }
        }
        for channel in 0..3 {
            values.extend(pixels.iter().map(|pixel| (2.0 * pixel[channel] - 1.0) as f32));
        }
    }
    Tensor::new(&[count, 3, side, side], values).unwrap()
}

fn settings(side: usize, patch: usize, components: usize, codes: usize, patch_nums: &[usize]) -> PcaSettings {
    PcaSettings { side, patch, components, codes, patch_nums: patch_nums.to_vec(), seed: 5 }
}

fn psnr(a: &Tensor, b: &Tensor) -> f64 {
    let (a, b) = (a.to_f64_vec().unwrap(), b.to_f64_vec().unwrap());
    let mean = a.iter().zip(&b).map(|(a, b)| (a - b).powi(2)).sum::<f64>() / a.len() as f64;
    10.0 * (4.0 / mean).log10()
}

#[test]
fn pca_reconstructs_drawn_images() {
    let images = drawn(300, 32, 1);
    let fitted = PcaTokenizer::fit_batch(settings(32, 8, 16, 256, &[1, 2, 3, 4]), &images).unwrap();
    let (tokenizer, report) = fitted;
    println!("drawn images: {report:?}");
    assert_eq!((report.images, report.fitted, report.held_out), (300, 270, 30));
    assert!(report.explained_variance > 0.9 && report.explained_variance <= 1.0);
    assert!(report.psnr_db > 18.0, "{report:?}");
    assert!(report.codes_used > 120.0 && report.codes_used <= 256.0, "{report:?}");

    // Images that no part of the fit has seen: the report's figure is that of the tokenizer in use.
    let others = drawn(60, 32, 2);
    let codes = tokenizer.encode(&others).unwrap();
    let decoded = tokenizer.decode(&codes).unwrap();
    assert!(decoded.as_slice::<f32>().unwrap().iter().all(|value| (-1.0..=1.0).contains(value)));
    assert!((psnr(&decoded, &others) - report.psnr_db).abs() < 1.5, "{} {report:?}", psnr(&decoded, &others));
    // The codes are those of the quantizer on the features, and an image's do not depend on its batch.
    assert_eq!(codes, tokenizer.quantizer().encode(&tokenizer.features(&others).unwrap()).unwrap());
    assert_eq!(tokenizer.encode(&sample(&others, 7)).unwrap(), sample(&codes, 7));
    assert_eq!(tokenizer.decode(&sample(&codes, 7)).unwrap(), sample(&decoded, 7));
    // Features have a mean square near 1, so that a network sees the same scale for any images.
    let features = tokenizer.features(&images).unwrap().to_f64_vec().unwrap();
    let square = features.iter().map(|value| value * value).sum::<f64>() / features.len() as f64;
    assert!((0.8..1.25).contains(&square), "{square}");
}

#[test]
fn pca_with_every_component_and_fine_codes_is_nearly_exact() {
    // 2×2 patches have 12 components; four images of 2×2 patches are fewer patches than codes.
    let images = drawn(4, 4, 3);
    let (tokenizer, report) = PcaTokenizer::fit_batch(settings(4, 2, 12, 64, &[1, 2]), &images).unwrap();
    assert_eq!((report.fitted, report.held_out), (4, 0));
    assert!((report.explained_variance - 1.0).abs() < 1e-9);
    let decoded = tokenizer.decode(&tokenizer.encode(&images).unwrap()).unwrap();
    assert!(psnr(&decoded, &images) > 25.0, "{}", psnr(&decoded, &images));
}

fn on_threads<T: Send>(threads: usize, work: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(work)
}

#[test]
fn fits_and_codes_are_the_same_bits_on_one_and_two_threads() {
    let images = drawn(50, 16, 4);
    let run = |threads| {
        on_threads(threads, || {
            let fitted: (PcaTokenizer, FitReport) =
                PcaTokenizer::fit_batch(settings(16, 4, 7, 40, &[1, 2, 4]), &images).unwrap();
            let codes = fitted.0.encode(&images).unwrap();
            let input = fitted.0.quantizer().input(&codes).unwrap();
            let words =
                HashedWords::new(9, 10, 3).unwrap().encode(&["a cat", "a dog", "", "ein Hund"]).unwrap();
            (fitted.0.fingerprint(), fitted.1, fitted.0.decode(&codes).unwrap(), codes, input, words)
        })
    };
    assert_eq!(run(1), run(2));
    let other = PcaSettings { seed: 6, ..settings(16, 4, 7, 40, &[1, 2, 4]) };
    assert_ne!(PcaTokenizer::fit_batch(other, &images).unwrap().0.fingerprint(), run(1).0);
}

#[test]
fn pca_fits_one_by_one_as_it_fits_a_batch() {
    let images = drawn(30, 8, 5);
    let settings = settings(8, 4, 5, 16, &[1, 2]);
    let one_by_one = (0..30).map(|at| sample(&images, at).reshape(&[3, 8, 8]));
    let (a, _) = PcaTokenizer::fit(settings.clone(), one_by_one).unwrap();
    let (b, _) = PcaTokenizer::fit_batch(settings.clone(), &images).unwrap();
    assert_eq!(a.fingerprint(), b.fingerprint());
    assert_eq!(a.settings(), &settings);

    // More images than are held: a sample of them is fitted.
    let many = (0..5000).map(|at| sample(&images, at % 30).reshape(&[3, 8, 8]));
    let (_, report) = PcaTokenizer::fit(settings, many).unwrap();
    assert_eq!((report.images, report.fitted + report.held_out), (5000, 2048));
}

#[test]
fn pca_bears_degenerate_images() {
    let flat = Tensor::new(&[12, 3, 8, 8], vec![0.25f32; 12 * 192]).unwrap();
    let same = {
        let one = sample(&drawn(1, 8, 6), 0);
        Tensor::new(&[12, 3, 8, 8], one.as_slice::<f32>().unwrap().repeat(12)).unwrap()
    };
    for (images, least) in [(flat, 100.0), (same, 20.0)] {
        let (tokenizer, report) = PcaTokenizer::fit_batch(settings(8, 4, 6, 32, &[1, 2]), &images).unwrap();
        assert!(report.psnr_db > least && report.psnr_db <= 120.0, "{report:?}");
        assert!(report.codes_used >= 1.0 && report.explained_variance.is_finite());
        let decoded = tokenizer.decode(&tokenizer.encode(&images).unwrap()).unwrap();
        assert!(decoded.as_slice::<f32>().unwrap().iter().all(|value| value.is_finite()));
    }
    let single = drawn(1, 4, 7);
    PcaTokenizer::fit_batch(settings(4, 4, 3, 1, &[1]), &single).unwrap();
}

#[test]
fn pca_refuses_what_does_not_fit() {
    let images = drawn(3, 8, 8);
    let fit = |settings| message(PcaTokenizer::fit_batch(settings, &images));
    assert!(fit(settings(8, 3, 4, 8, &[1, 2])).contains("divides"));
    assert!(fit(settings(8, 0, 4, 8, &[1, 2])).contains("divides"));
    assert!(fit(settings(8, 4, 4, 8, &[1, 3])).contains("must end with 2"));
    assert!(fit(settings(8, 4, 4, 8, &[])).contains("must end with 2"));
    assert!(fit(settings(8, 4, 4, 8, &[2, 2])).contains("increasing"));
    assert!(fit(settings(8, 4, 49, 8, &[1, 2])).contains("1 to 48"));
    assert!(fit(settings(8, 4, 0, 8, &[1, 2])).contains("1 to 48"));
    assert!(fit(settings(8, 4, 4, 0, &[1, 2])).contains("codebook"));
    assert!(fit(settings(16, 4, 4, 8, &[1, 4])).contains("[B, 3, 16, 16]"));
    let good = settings(8, 4, 4, 8, &[1, 2]);
    assert!(message(PcaTokenizer::fit(good.clone(), [])).contains("no image"));
    let other = PcaTokenizer::fit(good.clone(), [Tensor::new(&[3, 4, 4], vec![0f32; 48])]);
    assert!(message(other).contains("image 0"));
    let failing = PcaTokenizer::fit(good.clone(), [Err(Error::invalid("cannot decode it"))]);
    assert!(message(failing).contains("cannot decode it"));
    let mut broken = images.clone();
    broken.as_mut_slice::<f32>().unwrap()[192 + 5] = f32::NAN;
    assert!(message(PcaTokenizer::fit_batch(good.clone(), &broken)).contains("image 1"));

    let (tokenizer, _) = PcaTokenizer::fit_batch(good, &images).unwrap();
    assert!(message(tokenizer.encode(&broken)).contains("image 1"));
    assert!(message(tokenizer.encode(&drawn(1, 4, 0))).contains("[B, 3, 8, 8]"));
    assert!(message(tokenizer.decode(&Tensor::zeros(&[1, 4], DType::U32))).contains("[B, 5]"));
    assert!(
        message(tokenizer.decode(&Tensor::new(&[1, 5], vec![8u32; 5]).unwrap())).contains("out of range")
    );
}

#[test]
fn saved_encoders_come_back_through_the_loaders() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("encoders");
    let images = drawn(12, 8, 9);
    let (tokenizer, _) = PcaTokenizer::fit_batch(settings(8, 4, 5, 16, &[1, 2]), &images).unwrap();
    let words = HashedWords::new(6, 8, 1).unwrap();
    tokenizer.save(&folder).unwrap();
    words.save(&folder).unwrap();

    let loaded = load_image_tokenizer(&folder).unwrap();
    assert_eq!(loaded.fingerprint(), tokenizer.fingerprint());
    assert_eq!(loaded.image_side(), 8);
    let codes = loaded.encode(&images).unwrap();
    assert_eq!(codes, tokenizer.encode(&images).unwrap());
    assert_eq!(loaded.decode(&codes).unwrap(), tokenizer.decode(&codes).unwrap());
    let loaded = load_text_encoder(&folder).unwrap();
    assert_eq!(loaded.fingerprint(), words.fingerprint());
    assert_eq!((loaded.tokens(), loaded.channels()), (6, 8));
    assert_eq!(loaded.encode(&["a cat"]).unwrap(), words.encode(&["a cat"]).unwrap());
    let mut names: Vec<_> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["image_tokenizer.json", "image_tokenizer.safetensors", "text_encoder.json"]);
}

#[test]
fn damaged_encoders_are_refused_with_the_place_and_the_cause() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let missing = message(load_image_tokenizer(folder));
    assert!(missing.contains("cannot read") && missing.contains("image_tokenizer.json"), "{missing}");

    let (tokenizer, _) = PcaTokenizer::fit_batch(settings(8, 4, 5, 16, &[1, 2]), &drawn(12, 8, 9)).unwrap();
    tokenizer.save(folder).unwrap();
    HashedWords::new(6, 8, 1).unwrap().save(folder).unwrap();
    let (image, text) = (folder.join("image_tokenizer.json"), folder.join("text_encoder.json"));
    let weights = folder.join("image_tokenizer.safetensors");
    let (good_image, good_text) = (fs::read_to_string(&image).unwrap(), fs::read_to_string(&text).unwrap());
    let good_weights = fs::read(&weights).unwrap();
    let image_error = |json: &str| {
        fs::write(&image, json).unwrap();
        message(load_image_tokenizer(folder))
    };
    let text_error = |json: &str| {
        fs::write(&text, json).unwrap();
        message(load_text_encoder(folder))
    };

    let found = image_error(&good_image.replace("\"pca\"", "\"jpeg\""));
    assert!(found.contains("unknown kind `jpeg`; expected one of pca"), "{found}");
    let found = text_error(&good_text.replace("hashed-words", "morse"));
    assert!(found.contains("unknown kind `morse`; expected one of hashed-words"), "{found}");
    assert!(image_error("{").contains("not the description"));
    assert!(
        image_error(&good_image.replace("\"patch\": 4", "\"patch\": \"four\"")).contains("settings.patch")
    );
    assert!(image_error(&good_image.replace("\"patch\": 4", "\"patch\": 3")).contains("divides"));
    assert!(image_error(&good_image.replace("\"codes\": 16", "\"codes\": 17")).contains("[17, 5]"));
    assert!(image_error(&good_image.replace("\"seed\": 5", "\"seed\": 6")).contains("fingerprint"));
    assert!(text_error(&good_text.replace("\"tokens\": 6", "\"tokens\": 0")).contains("at least one token"));
    assert!(text_error(&good_text.replace("\"seed\": 1", "\"seed\": 2")).contains("fingerprint"));

    fs::write(&image, &good_image).unwrap();
    fs::write(&weights, &good_weights[..good_weights.len() - 1]).unwrap();
    assert!(message(load_image_tokenizer(folder)).contains("not a complete safetensors file"));
    let mut flipped = good_weights.clone();
    let middle = flipped.len() - 100;
    flipped[middle] ^= 1;
    fs::write(&weights, &flipped).unwrap();
    assert!(message(load_image_tokenizer(folder)).contains("fingerprint"));
    let one = noise(&[1], 0);
    saved::write_tensors(&weights, &[("scale", &one)]).unwrap();
    assert!(message(load_image_tokenizer(folder)).contains("mean is missing"));
    fs::write(&weights, &good_weights).unwrap();
    load_image_tokenizer(folder).unwrap();
}

#[test]
fn saving_over_a_file_is_an_error_that_names_the_place() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "in the way").unwrap();
    let found = message(HashedWords::new(2, 2, 0).unwrap().save(&file));
    assert!(found.contains("file"), "{found}");
}

#[test]
fn hashed_words_give_every_caption_a_token_and_words_their_vectors() {
    let encoder = HashedWords::new(5, 12, 7).unwrap();
    let captions = ["", "red cat", "cat", "a b c d e f g h", "猫の絵", "!!"];
    let states = encoder.encode(&captions).unwrap();
    assert_eq!(states.states.shape(), [6, 5, 12]);
    let mask = states.mask.as_slice::<u32>().unwrap();
    let used: Vec<u32> = mask.chunks_exact(5).map(|mask| mask.iter().sum()).collect();
    assert_eq!(used, [1, 3, 2, 5, 4, 1]);
    assert!(mask.chunks_exact(5).all(|mask| mask.windows(2).all(|pair| pair[0] >= pair[1])));

    let values = states.states.as_slice::<f32>().unwrap();
    let token = |caption: usize, at: usize| &values[(caption * 5 + at) * 12..][..12];
    assert!(token(1, 3).iter().chain(token(0, 1)).all(|&value| value == 0.0), "padding is zero");
    assert_eq!(token(0, 0), token(3, 0), "the start token is the same for all");
    // "cat" is the second word of one caption and the first of another: the difference is that of the positions.
    let moved: Vec<f32> = token(1, 2).iter().zip(token(2, 1)).map(|(a, b)| a - b).collect();
    let positions: Vec<f32> = {
        let plain = encoder.encode(&["x x"]).unwrap();
        let plain = plain.states.as_slice::<f32>().unwrap();
        (0..12).map(|channel| plain[24 + channel] - plain[12 + channel]).collect()
    };
    assert!(moved.iter().zip(&positions).all(|(a, b)| (a - b).abs() < 1e-6), "{moved:?} {positions:?}");
    assert!(token(1, 1).iter().zip(token(2, 1)).any(|(a, b)| (a - b).abs() > 0.1), "words differ");

    let pooled = states.pooled.as_slice::<f32>().unwrap();
    for (caption, &used) in used.iter().enumerate() {
        for channel in 0..12 {
            let mean = (0..used as usize).map(|at| token(caption, at)[channel]).sum::<f32>() / used as f32;
            assert!((mean - pooled[caption * 12 + channel]).abs() < 1e-6);
        }
    }
    // A caption's states do not depend on the batch, on what was encoded before, or on capitals.
    let fresh = HashedWords::new(5, 12, 7).unwrap().encode(&["Red CAT"]).unwrap();
    assert_eq!(fresh.states, sample(&states.states, 1));
    assert_eq!(fresh.pooled, sample(&states.pooled, 1));
    let other = HashedWords::new(5, 12, 8).unwrap();
    assert_ne!(other.encode(&["Red CAT"]).unwrap().states, fresh.states);
    assert_ne!(other.fingerprint(), encoder.fingerprint());
    assert_eq!(encoder.encode(&[]).unwrap().states.shape(), [0, 5, 12]);
}

#[test]
fn hashed_words_refuse_no_tokens_and_no_channels() {
    assert!(message(HashedWords::new(0, 4, 0)).contains("at least one token"));
    assert!(message(HashedWords::new(4, 0, 0)).contains("at least one token"));
}
