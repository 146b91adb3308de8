//! Assigns the pyramid's shared convolutions φ to scales.

/// Which of `convolutions` shared φ each of `scales` uses, exactly as numpy computes it in f64 in the upstream code
/// (`PhiPartiallyShared`): the evenly spaced tick nearest to `si/(scales - 1)`; ties go to the
/// first. With ten scales and four convolutions two scales are ties but for rounding: `[0,0,1,1,1,2,2,3,3,3]`.
#[expect(clippy::cast_precision_loss, reason = "a few scales")]
pub(crate) fn phi_index(scales: usize, convolutions: usize) -> Vec<usize> {
    if convolutions == 0 {
        return vec![0; scales];
    }
    let count = convolutions as f64;
    let start = if convolutions == 4 { 1.0 / 3.0 / count } else { 1.0 / 2.0 / count };
    let stop = 1.0 - start;
    let step = (stop - start) / (count - 1.0);
    let ticks: Vec<f64> = (0..convolutions)
        .map(|at| match at {
            0 => start,
            at if at + 1 == convolutions => stop,
            at => at as f64 * step + start,
        })
        .collect();
    (0..scales)
        .map(|scale| {
            // A single scale has no position between the first and the last; it uses the first.
            let position = if scales == 1 { 0.0 } else { scale as f64 / (scales - 1) as f64 };
            let mut best = 0;
            for (at, tick) in ticks.iter().enumerate() {
                if (tick - position).abs() < (ticks[best] - position).abs() {
                    best = at;
                }
            }
            best
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::phi_index;

    /// Digits computed with numpy 2.4.6 from the upstream formula, for 2 to 16 scales.
    const TABLE: [(usize, [&str; 15]); 5] = [
        (
            2,
            [
                "01",
                "001",
                "0011",
                "00011",
                "000111",
                "0000111",
                "00001111",
                "000001111",
                "0000011111",
                "00000011111",
                "000000111111",
                "0000000111111",
                "00000001111111",
                "000000001111111",
                "0000000011111111",
            ],
        ),
        (
            3,
            [
                "02",
                "012",
                "0012",
                "00122",
                "001122",
                "0001122",
                "00011222",
                "000111222",
                "0000111222",
                "00001112222",
                "000011112222",
                "0000011112222",
                "00000111122222",
                "000001111122222",
                "0000001111122222",
            ],
        ),
        (
            4,
            [
                "03",
                "023",
                "0123",
                "01223",
                "001233",
                "0012233",
                "00112233",
                "001122233",
                "0011122333",
                "00011222333",
                "000111222333",
                "0001112222333",
                "00011112222333",
                "000011122223333",
                "0000111122223333",
            ],
        ),
        (
            5,
            [
                "04",
                "024",
                "0134",
                "01234",
                "001234",
                "0012344",
                "00122344",
                "001123344",
                "0011223344",
                "00011223344",
                "000112233444",
                "0001122233444",
                "00011122333444",
                "000111222333444",
                "0000111222333444",
            ],
        ),
        (
            7,
            [
                "06",
                "036",
                "0246",
                "01356",
                "012456",
                "0123456",
                "00123456",
                "001234566",
                "0012334566",
                "00122344566",
                "001123345566",
                "0011223445566",
                "00112233445566",
                "000112233445566",
                "0001122334455666",
            ],
        ),
    ];

    #[test]
    fn phi_index_is_that_of_numpy() {
        for (convolutions, rows) in TABLE {
            for (row, scales) in rows.iter().zip(2..) {
                let found: String = phi_index(scales, convolutions).iter().map(usize::to_string).collect();
                assert_eq!(&found, row, "{convolutions} convolutions, {scales} scales");
            }
        }
        assert_eq!(phi_index(5, 1), [0; 5]);
        assert_eq!(phi_index(1, 4), [0]);
        assert_eq!(phi_index(3, 0), [0; 3]);
    }
}
