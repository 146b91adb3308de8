//! The VQ-VAE's features, codes and images.

use std::{collections::BTreeMap, path::PathBuf};

use alchemist_engine::{
    encode::{
        ImageTokenizer,
        vqvae::{VqVae, VqVaeSettings},
    },
    engine::{Tensor, cuda::Device},
};

use super::{
    all_of,
    codes::{equal_but_for, ties},
    common::{Fixture, open_device, relative_error, tolerance},
    compare, fixtures, lacks, report, tensors,
};

/// The sets of a VQ-VAE that have its weights, with the tensors next to them.
fn sets() -> Vec<(Fixture, BTreeMap<String, Tensor>)> {
    let whole = |fixture: Fixture| {
        if weights(&fixture).is_none() {
            lacks(&fixture, "the weights");
            return None;
        }
        let io = tensors(&fixture, "io.safetensors")?;
        all_of(&fixture, &io, ["image"])?;
        Some((fixture, io))
    };
    fixtures("vqvae").into_iter().filter_map(whole).collect()
}

/// The file of the weights.
fn weights(fixture: &Fixture) -> Option<PathBuf> {
    let entries = std::fs::read_dir(&fixture.folder).unwrap().flatten().map(|entry| entry.path());
    let is_weights = |path: &PathBuf| {
        path.extension().is_some_and(|ending| ending == "pth")
            || path
                .file_name()
                .is_some_and(|name| name == "weights.safetensors" || name == "model.safetensors")
    };
    entries.into_iter().find(is_weights)
}

/// The VQ-VAE on the CPU.
fn open(fixture: &Fixture) -> VqVae {
    let path = weights(fixture).expect("the set has weights");
    let settings = VqVaeSettings { path, patch_nums: fixture.patch_nums() };
    VqVae::open(settings).unwrap()
}

#[test]
fn vqvae_matches_the_released_code() {
    for (fixture, io) in sets() {
        // Where `ALCHEMIST_DEVICE` says. The device is its own: on the one that tests share, others record their work.
        let vqvae = match open_device() {
            None => open(&fixture),
            Some(device) => open(&fixture).placed(&device).unwrap(),
        };
        assert_eq!(vqvae.fingerprint(), open(&fixture).fingerprint());
        let size = |key: &str| fixture.manifest["vqvae"][key].as_u64().map(|size| size as usize);
        for (found, told) in
            [(vqvae.image_side(), size("image_size")), (vqvae.quantizer().vocabulary(), size("vocab_size"))]
        {
            assert_eq!(Some(found), told.or(Some(found)), "{}", fixture.name());
        }
        let limit = tolerance::PARITY_FORWARD;
        let features = vqvae.features(&io["image"]).unwrap();
        compare(&fixture, "features", &features, io.get("f_BChw"), limit);
        if let Some([f, codes]) = all_of(&fixture, &io, ["f_BChw", "idx_BL"]) {
            let ties = ties(vqvae.quantizer(), f, &vqvae.encode(&io["image"]).unwrap(), codes).unwrap();
            let what = format!("{}; the networks' input", equal_but_for(ties));
            let input = vqvae.quantizer().input(codes).unwrap();
            compare(&fixture, &what, &input, io.get("x_BLCv_wo_first_l"), limit);
            let image = vqvae.decode(codes).unwrap();
            compare(&fixture, "image from codes", &image, io.get("reconstruction"), limit);
        }
        // Before it is clamped, where the set has that.
        if let Some([f, raw]) = all_of(&fixture, &io, ["f_hat_last", "decoder_raw"]) {
            compare(&fixture, "decoder", &vqvae.decode_features(f).unwrap(), Some(raw), limit);
        }
        // An image's codes do not depend on the others of its batch.
        let twice = Tensor::new(
            &[2, 3, vqvae.image_side(), vqvae.image_side()],
            io["image"].as_slice::<f32>().unwrap()[..3 * vqvae.image_side().pow(2)].repeat(2),
        )
        .unwrap();
        let both = vqvae.features(&twice).unwrap().to_f64_vec().unwrap();
        let (first, second) = both.split_at(both.len() / 2);
        assert!(first == second && first == &features.to_f64_vec().unwrap()[..first.len()]);
    }
}

/// On a device (the emulator, unless `ALCHEMIST_DEVICE` names another) the products are those of parts of 16 bits: features
/// must be as near those of f32 on the CPU as f32 itself, and codes the same.
#[test]
#[cfg_attr(not(feature = "emulator"), ignore = "needs the emulator")]
fn vqvae_on_a_device_gives_the_codes_of_the_processor() {
    let device = open_device().unwrap_or_else(|| Device::emulated().expect("the emulator"));
    for (fixture, io) in sets() {
        let (host, placed) = (open(&fixture), open(&fixture).placed(&device).unwrap());
        let (features, on_device) =
            (host.features(&io["image"]).unwrap(), placed.features(&io["image"]).unwrap());
        report(&fixture, "features on a device", relative_error(&on_device, &features), tolerance::OP_F32);
        let (expected, codes) = (host.encode(&io["image"]).unwrap(), placed.encode(&io["image"]).unwrap());
        let ties = ties(host.quantizer(), &features, &codes, &expected).unwrap();
        println!("parity {:<24} on a device {}", fixture.name(), equal_but_for(ties));
    }
}

/// A number that is not finite is refused, and its image named, wherever in the image it is.
#[test]
fn images_that_are_not_finite_are_refused() {
    for (fixture, _) in sets() {
        let vqvae = open(&fixture);
        let side = vqvae.image_side();
        let image = 3 * side * side;
        for (at, value) in [(0, f32::NAN), (image + 1, f32::INFINITY), (2 * image - 1, f32::NAN)] {
            let mut values = vec![0.5; 3 * image];
            values[at] = value;
            // A later image is not the one that is named.
            values[3 * image - 1] = f32::NEG_INFINITY;
            let images = Tensor::new(&[3, 3, side, side], values).unwrap();
            let message = vqvae.encode(&images).unwrap_err().to_string();
            assert!(message.contains(&format!("image {} of the batch", at / image)), "{message}");
        }
    }
}

/// Filters are read and arranged at their first use, by whichever thread comes first: with many threads and images, too.
#[test]
fn many_threads_use_a_vqvae_for_the_first_time() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(16).build().unwrap();
    for (fixture, io) in sets() {
        let expected = open(&fixture).features(&io["image"]).unwrap();
        for _ in 0..10 {
            let vqvae = open(&fixture);
            assert_eq!(pool.install(|| vqvae.features(&io["image"])).unwrap(), expected);
        }
    }
}
