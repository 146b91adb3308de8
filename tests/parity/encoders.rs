//! The quantizer's codes and features, and the cutting and resizing of images.

use alchemist_engine::{
    data::{Preprocess, load_image},
    engine::{
        DType, Tensor,
        ops::pyramid::{CodeReader, PyramidQuantizer, Reach, cuda::pyramid_quantize},
    },
};

use super::{
    Tensors, all_of,
    codes::{equal_but_for, ties},
    common::{Fixture, device, relative_error, tolerance},
    fixtures, lacks, report, sizes, tensors,
};

#[test]
fn quantizer_matches_the_released_code() {
    for fixture in fixtures("quant") {
        if fixture.manifest["cases"].is_object() {
            quantizer_cases(&fixture);
        } else {
            quantizer_single(&fixture);
        }
    }
}

fn quantizer_single(fixture: &Fixture) {
    let [Some(weights), Some(io)] =
        ["weights", "io"].map(|file| tensors(fixture, &format!("{file}.safetensors")))
    else {
        return;
    };
    if all_of(fixture, &io, ["f_BChw", "idx_BL", "x_BLCv_wo_first_l"]).is_none() {
        return;
    }
    let ratio = fixture.manifest["config"]["quant_resi"].as_f64().unwrap_or(0.5) as f32;
    let quantizer =
        PyramidQuantizer::from_tensors(&fixture.patch_nums(), &weights, "quantize.", ratio).unwrap();
    let (codes, mut reconstructions) = quantizer.encode_with_reconstructions(&io["f_BChw"]).unwrap();
    let expected = &io["idx_BL"];
    let ties = ties(&quantizer, &io["f_BChw"], &codes, expected).unwrap();
    if ties > 0 {
        reconstructions = quantizer.reconstruct_each(expected).unwrap();
    }
    let mut worst = relative_error(&quantizer.input(expected).unwrap(), &io["x_BLCv_wo_first_l"]);
    for (scale, found) in reconstructions.iter().enumerate() {
        let name = format!("f_hat_{scale}");
        match io.get(&name) {
            Some(expected) => worst = worst.max(relative_error(found, expected)),
            None => lacks(fixture, &name),
        }
    }
    worst = worst.max(quantizer_on_device(&quantizer, &io["f_BChw"], expected, &io["x_BLCv_wo_first_l"]));
    report(fixture, &format!("{}; features", equal_but_for(ties)), worst, tolerance::PARITY_FORWARD);
}

/// The same by the kernels of the device that the tests run on, if there is one.
fn quantizer_on_device(
    quantizer: &PyramidQuantizer,
    features: &Tensor,
    codes: &Tensor,
    input: &Tensor,
) -> f64 {
    let Some(device) = device() else { return 0.0 };
    let [batch, first] = [codes.dim(0), quantizer.patch_nums()[0].pow(2)];
    let mut tables = quantizer.on_device(device, batch).unwrap();
    let placed = features.to_device(device).unwrap();
    let found = Tensor::written::<u32>(device, codes.shape(), |found| {
        pyramid_quantize(found, placed.buffer()?, &mut tables)
    });
    let ties = ties(quantizer, features, &found.unwrap().to_host().unwrap(), codes).unwrap();
    if ties > 0 {
        println!("on the device {}", equal_but_for(ties));
    }
    let reader = CodeReader::new(quantizer, device, batch).unwrap();
    let rows = reader
        .input(&codes.to_device(device).unwrap(), DType::F32, Reach::Before)
        .unwrap()
        .to_host()
        .unwrap();
    let tail = |sample: &[f32]| sample[first * quantizer.channels()..].to_vec();
    let samples = rows.as_slice::<f32>().unwrap().chunks(quantizer.tokens() * quantizer.channels());
    relative_error(&Tensor::new(input.shape(), samples.flat_map(tail).collect::<Vec<f32>>()).unwrap(), input)
}

fn quantizer_cases(fixture: &Fixture) {
    let Some(all) = tensors(fixture, "all.safetensors") else { return };
    let cases = fixture.manifest["cases"].as_object().unwrap();
    assert!(!cases.is_empty(), "{} has no case", fixture.name());
    for (case, of) in cases {
        let names =
            ["f_BChw", "idx_BL", "x_BLCv_wo_first_l", "f_hat_last"].map(|name| format!("{case}.{name}"));
        if all_of(fixture, &all, names.each_ref().map(String::as_str)).is_some() {
            quantizer_case(fixture, &all, case, of);
        }
    }
}

fn quantizer_case(fixture: &Fixture, all: &Tensors, case: &str, of: &serde_json::Value) {
    let ratio = of["quant_resi"].as_f64().unwrap_or(0.5) as f32;
    let quantizer =
        PyramidQuantizer::from_tensors(&sizes(&of["patch_nums"]), all, "weights.quantize.", ratio).unwrap();
    assert_eq!(quantizer.phi_index(), sizes(&of["phi_index_per_scale"]), "{case}: the convolutions differ");
    let of_case = |name: &str| &all[&format!("{case}.{name}")];
    let codes = of_case("idx_BL");
    let ties =
        ties(&quantizer, of_case("f_BChw"), &quantizer.encode(of_case("f_BChw")).unwrap(), codes).unwrap();
    let input = relative_error(&quantizer.input(codes).unwrap(), of_case("x_BLCv_wo_first_l"));
    let last = relative_error(&quantizer.reconstruct(codes).unwrap(), of_case("f_hat_last"));
    let kernels =
        quantizer_on_device(&quantizer, of_case("f_BChw"), of_case("idx_BL"), of_case("x_BLCv_wo_first_l"));
    report(
        fixture,
        &format!("{case}: {}; features", equal_but_for(ties)),
        input.max(last).max(kernels),
        tolerance::PARITY_FORWARD,
    );
}

#[test]
fn images_are_cut_and_resized_as_by_the_released_code() {
    for fixture in fixtures("image_preproc") {
        let Some(expected) = tensors(&fixture, "expected.safetensors") else { continue };
        assert!(!expected.is_empty(), "{} has no image", fixture.name());
        let mut worst = 0.0f64;
        for (name, expected) in &expected {
            let (file, side) = name.rsplit_once(".r").expect("a name says the side");
            let side: usize = side.parse().expect("a side is a number");
            let image = load_image(fixture.folder.join(file), &Preprocess::released(side)).unwrap();
            let found = image.to_tensor().unwrap().to_f64_vec().unwrap();
            let levels = found.iter().map(|value| ((value + 1.0) * 127.5).round());
            let difference =
                levels.zip(expected.to_f64_vec().unwrap()).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            worst = worst.max(difference);
        }
        // The manifest allows one level for JPEG, whose decoders differ.
        report(&fixture, "8-bit levels", worst, 1.0);
    }
}
