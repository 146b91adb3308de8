//! Encodes images of 256 pixels with the VQ-VAE of the released size (ch 160) on a device, from host to host.
//!
//! The counterpart of `benches/pytorch/encode.py --device cuda`, which writes the weights that `ALCHEMIST_VQVAE` names.
//! `ALCHEMIST_BENCH_DEVICE` names the device as for the other benches; on the emulator the weights are the fixture's
//! (`ALCHEMIST_FIXTURES` names its folder). Each result is one line of JSON.
#![expect(clippy::print_stdout, reason = "the program prints its results")]

#[path = "ops/measure.rs"]
#[allow(dead_code, reason = "ceilings are measured elsewhere")]
mod measure;

use std::{env, path::PathBuf, time::Instant};

use alchemist_engine::{
    Result,
    encode::{
        ImageTokenizer,
        vqvae::{VqVae, VqVaeSettings},
    },
    engine::{Purpose, Random, Tensor},
};
use measure::{Measured, measured};
use serde_json::json;

/// Repetitions after two for warm-up.
const REPEATS: usize = 7;

fn settings(measured: &Measured) -> Option<VqVaeSettings> {
    if measured.rehearsal {
        let built = || concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures").into();
        let path = PathBuf::from(env::var_os("ALCHEMIST_FIXTURES").unwrap_or_else(built));
        return Some(VqVaeSettings {
            path: path.join("vqvae_tiny/vqvae_tiny.pth"),
            patch_nums: vec![1, 2, 3, 4],
        });
    }
    let path = env::var_os("ALCHEMIST_VQVAE")?.into();
    Some(VqVaeSettings { path, patch_nums: vec![1, 2, 3, 4, 5, 6, 8, 10, 13, 16] })
}

fn main() -> Result<()> {
    let Some(measured) = measured() else {
        println!("{}", json!({ "name": "encode", "state": "no device" }));
        return Ok(());
    };
    let Some(settings) = settings(&measured) else {
        println!("{}", json!({ "name": "encode", "state": "ALCHEMIST_VQVAE names no weights" }));
        return Ok(());
    };
    measured.device.reset_peak_memory();
    let vqvae = VqVae::open(settings)?.placed(&measured.device)?;
    let (count, side) = (measured.size(64, 2), vqvae.image_side());
    let mut random = Random::new(1, Purpose::Test, 1);
    let pixels = (0..count * 3 * side * side).map(|_| 2.0 * random.uniform() as f32 - 1.0).collect();
    let images = Tensor::new(&[count, 3, side, side], pixels)?;
    let mut times = Vec::new();
    for _ in 0..2 + if measured.rehearsal { 1 } else { REPEATS } {
        let start = Instant::now();
        vqvae.encode(&images)?;
        times.push(start.elapsed().as_secs_f64());
    }
    times.drain(..2);
    times.sort_by(f64::total_cmp);
    let median = times[times.len() / 2];
    let (codes, products) = measured.device.time_products(|| vqvae.encode(&images))?;
    println!(
        "{}",
        json!({
            "name": "encode/f32",
            "device": measured.device.facts().model,
            "median_s": median,
            "min_s": times[0],
            "max_s": times[times.len() - 1],
            "n": times.len(),
            "batch": count,
            "codes": codes.len(),
            "images_per_s": count as f64 / median,
            "peak_bytes": measured.device.memory().peak_bytes,
            "product_share": products.as_secs_f64() / median,
        })
    );
    Ok(())
}
