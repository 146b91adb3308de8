//! Codes compared with the released ones.

use alchemist_engine::engine::{Tensor, ops::pyramid::PyramidQuantizer};

use super::{common::tolerance, left_over::left_over};

/// Compares codes `[B, L]` of `features` `[B, C, h, w]`: a code may be another than the expected one where both are equally
/// far but for [`tolerance::CODE_TIE`]. Scales after such a one see other features, and are not compared. Gives the number of such
/// ties, or says which code is none.
pub(crate) fn ties(
    quantizer: &PyramidQuantizer,
    features: &Tensor,
    found: &Tensor,
    expected: &Tensor,
) -> Result<usize, String> {
    assert_eq!(found.shape(), expected.shape(), "the codes");
    let (tokens, channels) = (quantizer.tokens(), quantizer.channels());
    let map = channels * quantizer.side().pow(2);
    let codebook = quantizer.codebook().to_f64_vec().unwrap();
    let samples = |codes: &Tensor| -> Vec<Vec<u32>> {
        codes.as_slice::<u32>().unwrap().chunks(tokens).map(<[u32]>::to_vec).collect()
    };
    let features = features.as_slice::<f32>().unwrap().chunks(map);
    let mut ties = 0;
    for ((sample, features), (found, expected)) in
        features.enumerate().zip(samples(found).into_iter().zip(samples(expected)))
    {
        if found == expected {
            continue;
        }
        let mut first = 0;
        for (side, rows) in quantizer.patch_nums().iter().zip(left_over(quantizer, features, &expected)) {
            let before = ties;
            for (token, row) in (first..).zip(rows.chunks(channels)) {
                let distance = |code: u32| -> f64 {
                    let code = &codebook[code as usize * channels..][..channels];
                    code.iter().zip(row).map(|(code, value)| (code - value).powi(2)).sum()
                };
                let (own, other) = (found[token], expected[token]);
                if own != other {
                    let (near, far) = (distance(own), distance(other));
                    if (near - far).abs() >= tolerance::CODE_TIE * near.max(far) {
                        return Err(format!(
                            "sample {sample}, token {token}: code {own} at {near}, the expected one is {other} at {far}"
                        ));
                    }
                    ties += 1;
                }
            }
            if ties > before {
                break;
            }
            first += side * side;
        }
    }
    Ok(ties)
}

/// What a line of the report says of that many ties.
pub(crate) fn equal_but_for(ties: usize) -> String {
    if ties == 0 { "codes equal".to_owned() } else { format!("codes equal but for {ties} ties") }
}

#[test]
fn ties_are_counted_and_other_codes_are_not_let_pass() {
    // Codes 1 and 2 are as far from 0.5; code 3 is not.
    let codebook = Tensor::new(&[4, 1], vec![9.0f32, 0.0, 1.0, 1.001]).unwrap();
    let quantizer = PyramidQuantizer::new(&[1, 2], &codebook, Vec::new()).unwrap();
    let features = Tensor::new(&[2, 1, 2, 2], vec![0.5f32; 8]).unwrap();
    let codes = |codes: [u32; 10]| Tensor::new(&[2, 5], codes.to_vec()).unwrap();
    let expected = codes([1, 1, 1, 1, 1, 2, 1, 1, 1, 1]);
    let ties = |found: Tensor| ties(&quantizer, &features, &found, &expected);
    assert_eq!(ties(expected.clone()), Ok(0));
    // A tie in the first scale ends the comparison of its sample, and of no other.
    assert_eq!(ties(codes([2, 0, 0, 0, 0, 2, 1, 1, 1, 1])), Ok(1));
    assert!(
        ties(codes([3, 1, 1, 1, 1, 2, 1, 1, 1, 1])).unwrap_err().starts_with("sample 0, token 0: code 3")
    );
    assert!(
        ties(codes([2, 0, 0, 0, 0, 2, 0, 1, 1, 1])).unwrap_err().starts_with("sample 1, token 1: code 0")
    );
}
