//! Peak rates of the device: bandwidth of copies, and bf16 products by cuBLASLt.
#![expect(clippy::print_stdout, reason = "the program prints its results")]

#[path = "ops/measure.rs"]
mod measure;

use alchemist_engine::Result;
use serde_json::json;

fn main() -> Result<()> {
    // `cargo bench` passes criterion's flags, which are ignored here.
    let Some(measured) = measure::measured() else {
        println!("{}", json!({ "name": "device", "state": "none" }));
        return Ok(());
    };
    let facts = measured.device.facts().clone();
    let (major, minor) = facts.capability;
    println!(
        "{}",
        json!({
            "name": "device",
            "device": facts.name,
            "model": facts.model,
            "capability": format!("{major}.{minor}"),
            "memory_bytes": facts.memory_bytes,
            "shared_bytes": facts.shared_bytes,
            "multiprocessors": facts.multiprocessors,
            "commit": env!("ALCHEMIST_GIT_HASH"),
        })
    );
    let rate = measured.copy_ceiling()?;
    println!("{}", json!({ "name": "ceiling/copy", "bytes_per_s": rate }));
    let rows = measured.size(64 * 680, 32);
    let width = |real: usize| measured.size(real, 16);
    let squares = [1024, 2048, 4096, 8192].map(|side| [width(side); 3]);
    // The model's own products: query-key-value; the two of the MLP; the logits.
    let own = [
        [rows, width(3072), width(1024)],
        [rows, width(4096), width(1024)],
        [rows, width(1024), width(4096)],
    ];
    for sizes in squares.into_iter().chain(own) {
        let rate = measured.product_rate(sizes, true)?;
        println!("{}", json!({ "name": "ceiling/product_bf16", "mnk": sizes, "flop_per_s": rate }));
    }
    Ok(())
}
