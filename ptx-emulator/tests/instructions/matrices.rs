//! `ldmatrix` and `stmatrix`: lane 8 m + r names row r of matrix m; lane l holds elements 2 (l mod 4) and the next
//! of row l / 4, of the matrix or of its transpose.

use crate::lanes::evaluate_in;

/// Element of matrix, row and column: all differ.
fn element(matrix: usize, row: usize, column: usize) -> u64 {
    (matrix << 8 | row << 4 | column) as u64
}

/// What lane holds of a matrix.
fn fragment(matrix: usize, lane: usize, transposed: bool) -> u64 {
    let at = |column: usize| {
        let (row, column) = if transposed { (column, lane / 4) } else { (lane / 4, column) };
        element(matrix, row, column)
    };
    at(2 * (lane % 4)) | at(2 * (lane % 4) + 1) << 16
}

/// Row r of matrix m lies 80 bytes behind its predecessor, in an order of its own; %row is its address.
const TILE: &str = ".shared .align 16 .b8 tile[2560]; .reg .b32 %row, %r<8>;";
const ROW: &str = "mul.lo.u32 %row, %lane, 7; and.b32 %row, %row, 31; mul.lo.u32 %row, %row, 80;
    mov.b32 %r0, tile; add.u32 %row, %row, %r0;";

#[test]
fn ldmatrix_distributes_rows() {
    let lanes: Vec<u64> = (0..32).collect();
    // Lane 8 m + r writes its row: eight halves that name matrix, row and column.
    let fill: String = (0..4)
        .map(|pair| {
            format!(
                "shr.u32 %r1, %lane, 3; shl.b32 %r1, %r1, 8; and.b32 %r2, %lane, 7; shl.b32 %r2, %r2, 4;
                or.b32 %r1, %r1, %r2; or.b32 %r1, %r1, {low}; add.u32 %r2, %r1, 1; shl.b32 %r2, %r2, 16;
                or.b32 %r1, %r1, %r2; st.shared.b32 [%row+{at}], %r1;",
                low = 2 * pair,
                at = 4 * pair
            )
        })
        .collect();
    for count in [1, 2, 4] {
        for (trans, transposed) in [("", false), (".trans", true)] {
            for wanted in 0..count {
                let list = ["%r3", "%r4", "%r5", "%r6"][..count].join(", ");
                let body = format!(
                    "{ROW} {fill} bar.sync 0; ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {{{list}}}, [%row];
                    mov.b32 %d, %r{};",
                    3 + wanted
                );
                let found = evaluate_in(TILE, &body, "b32", &["b32"], &[&lanes]);
                for (lane, found) in found.into_iter().enumerate() {
                    assert_eq!(
                        found,
                        fragment(wanted, lane, transposed),
                        "x{count}{trans} register {wanted} lane {lane}"
                    );
                }
            }
        }
    }
}

#[test]
fn stmatrix_collects_rows() {
    for count in [1usize, 2, 4] {
        for (trans, transposed) in [("", false), (".trans", true)] {
            let sources: Vec<Vec<u64>> = (0..4)
                .map(|matrix| (0..32).map(|lane| fragment(matrix, lane, transposed)).collect())
                .collect();
            let sources: Vec<&[u64]> = sources.iter().map(Vec::as_slice).collect();
            let list = ["%a", "%b", "%c", "%e"][..count].join(", ");
            for pair in 0..4usize {
                // Lane 8 m + r reads its row back.
                let body = format!(
                    "{ROW} mov.b32 %d, 0; st.shared.b32 [%row+{at}], %d; bar.sync 0;
                    stmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 [%row], {{{list}}}; bar.sync 0;
                    ld.shared.b32 %d, [%row+{at}];",
                    at = 4 * pair
                );
                let found = evaluate_in(TILE, &body, "b32", &["b32"; 4], &sources);
                for (lane, found) in found.into_iter().enumerate() {
                    let (matrix, row) = (lane / 8, lane % 8);
                    let at = |part: usize| element(matrix, row, 2 * pair + part);
                    let wanted = if matrix < count { at(0) | at(1) << 16 } else { 0 };
                    assert_eq!(found, wanted, "x{count}{trans} pair {pair} lane {lane}");
                }
            }
        }
    }
}
