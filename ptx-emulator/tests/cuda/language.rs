//! C++ beyond arithmetic.

use bytemuck::{NoUninit, bytes_of};
use ptx_emulator::memory::Thread;
use ptx_emulator::{Cause, RunError};

use crate::{Random, addresses, each_variant};

const TABLE: [i32; 8] = [3, 1, 4, 1, 5, 9, 2, 6];

fn switch(mut value: i32) -> i32 {
    match value % 9 {
        0 => value * 3 + 1,
        1 => (value / 7) ^ 0x55,
        2 => value ^ 0x55,
        3 => -value,
        4 => {
            let mut j = 0;
            while j < value % 11 {
                value += j * j;
                j += 1;
            }
            value
        }
        5 => TABLE[(value & 7) as usize],
        6 => value << (value & 3),
        8 => value - 1000,
        _ => 77,
    }
}

#[test]
fn switches_recursion_and_pointers_to_functions() {
    each_variant("language.cu", 80, |sample| {
        let values = Random(15).many(100, |random| random.below(1 << 20) as i32 - (1 << 18));
        let (input, out) = (sample.upload(&values, "in"), sample.room::<i32>(100, "out"));
        sample.run("switches", [2, 1, 1], [64, 1, 1], addresses([input, out]).and(100));
        let found = sample.download::<i32>(out, 100);
        sample.assert_equal(
            "switches",
            &found,
            &values.iter().map(|&value| switch(value)).collect::<Vec<_>>(),
        );

        sample.run("recursion", [1, 1, 1], [40, 1, 1], addresses([out]));
        let found = sample.download::<i32>(out, 40);
        // The Ackermann function of 2 and n is 2 n + 3.
        sample.assert_equal("recursion", &found, &(0..40).map(|i| 2 * (i % 6) + 3).collect::<Vec<_>>());

        let steps: [fn(i32, i32) -> i32; 3] = [i32::wrapping_add, i32::wrapping_mul, |a, b| a ^ b];
        sample.run("function_pointers", [2, 1, 1], [48, 1, 1], addresses([input, out]));
        let expected = (0..96)
            .map(|i| (0..4).fold(values[i], |value, round| steps[(i + round) % 3](value, round as i32 + 2)));
        let found = sample.download::<i32>(out, 96);
        sample.assert_equal("function_pointers", &found, &expected.collect::<Vec<_>>());
    });
}

#[test]
fn virtual_calls_reach_each_lanes_type() {
    each_variant("language.cu", 80, |sample| {
        let out = sample.room::<f32>(48, "out");
        sample.run("virtual_calls", [1, 1, 1], [48, 1, 1], addresses([out]));
        let side = |i: usize| i as f32 + 1.0;
        let expected: Vec<f32> =
            (0..48).map(|i| if i % 2 == 0 { side(i) * side(i) } else { 0.5 * side(i) }).collect();
        let found = sample.download::<f32>(out, 48);
        sample.assert_equal("virtual_calls", &found, &expected);
    });
}

#[test]
fn objects_of_the_device_heap() {
    each_variant("language.cu", 80, |sample| {
        let out = sample.room::<i32>(48, "out");
        sample.run("heap", [1, 1, 1], [48, 1, 1], addresses([out]).and(-1));
        let found = sample.download::<i32>(out, 48);
        // The sum of the first i squares.
        sample.assert_equal(
            "heap",
            &found,
            &(0..48).map(|i| i * (i + 1) * (2 * i + 1) / 6).collect::<Vec<_>>(),
        );

        // Thread 7 reads a list of 7 after it was deleted.
        let Err(RunError::Fault(report)) =
            sample.try_run("heap", [1, 1, 1], [48, 1, 1], addresses([out]).and(7))
        else {
            panic!("{}: no fault", sample.variant)
        };
        let text = report.to_string();
        assert!(text.contains("has been freed") && text.contains("thread (7, 0, 0)"), "{text}");
    });
}

/// Offsets and the range of them that counts, as the kernel takes them by value.
#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct Window {
    values: [i32; 9],
    from: i16,
    to: i16,
}

#[test]
fn local_arrays_and_parameters_by_value() {
    each_variant("language.cu", 80, |sample| {
        let values = Random(16).many(70, |random| random.below(1000) as i32);
        let window = Window { values: [0, -3, 5, 1, -1, 2, -2, 4, 7], from: 1, to: 8 };
        let (input, out) = (sample.upload(&values, "in"), sample.room::<i32>(70, "out"));
        sample.run("medians", [2, 1, 1], [64, 1, 1], addresses([input, out]).and(70).and(window));
        let median = |i: i32| {
            let mut near = window.values[1..8]
                .iter()
                .map(|offset| values[((i + offset + 70) % 70) as usize])
                .collect::<Vec<_>>();
            near.sort_unstable();
            near[3]
        };
        let found = sample.download::<i32>(out, 70);
        sample.assert_equal("medians", &found, &(0..70).map(median).collect::<Vec<_>>());
    });
}

#[test]
fn constants_and_variables_of_the_module() {
    each_variant("language.cu", 80, |sample| {
        let (scale, bytes) = sample.rig.machine.variable(sample.rig.module, "scale").unwrap();
        assert_eq!(bytes, 4);
        sample.rig.machine.memory().write(Thread::HOST, scale, bytes_of(&2.5f32)).unwrap();
        let (out, lengths) = (sample.room::<f32>(40, "out"), sample.room::<i32>(3, "lengths"));
        sample.run("constants_and_globals", [1, 1, 1], [40, 1, 1], addresses([out, lengths]));
        let found = sample.download::<f32>(out, 40);
        let expected: Vec<f32> = (0..40).map(|i| 2.5 * TABLE[i % 8] as f32).collect();
        sample.assert_equal("constants_and_globals", &found, &expected);
        assert_eq!(sample.download::<i32>(lengths, 3), [44, 43, 45]);
    });
}

#[test]
fn a_failed_assertion_says_where() {
    each_variant("language.cu", 80, |sample| {
        let mut values = [1i32; 40];
        let input = sample.upload(&values, "in");
        sample.run("positive", [1, 1, 1], [40, 1, 1], addresses([input]));
        values[37] = 0;
        let input = sample.upload(&values, "in");
        let Err(RunError::Fault(report)) =
            sample.try_run("positive", [1, 1, 1], [40, 1, 1], addresses([input]))
        else {
            panic!("{}: no fault", sample.variant)
        };
        let Cause::Assertion(text) = &report.cause else { panic!("{report}") };
        assert!(text.contains("language.cu:") && text.contains("inputs are positive"), "{report}");
        assert_eq!(report.place.thread, [37, 0, 0], "{report}");
    });
}

#[test]
fn divisions_of_64_bits() {
    each_variant("language.cu", 80, |sample| {
        let mut random = Random(17);
        let mut pairs = random.many(60, |random| {
            [random.next() as i64 - (1 << 55), (random.next() >> random.below(50)) as i64 - 3]
        });
        pairs.iter_mut().for_each(|pair| pair[1] += i64::from(pair[1] == 0));
        let (input, out) = (sample.upload(&pairs, "in"), sample.room::<[i64; 4]>(60, "out"));
        sample.run("long_division", [2, 1, 1], [32, 1, 1], addresses([input, out]).and(60));
        let expected = pairs.iter().map(|&[a, b]| {
            let (c, d) = (a as i32, b as i32 | 1);
            let (quotient, rest) = (c.wrapping_div(d), c.wrapping_rem(d));
            let narrow = i64::from(quotient) << 32 | i64::from(rest as u32);
            [a / b, a % b, (a as u64 / b as u64) as i64, narrow]
        });
        let found = sample.download::<[i64; 4]>(out, 60);
        sample.assert_equal("long_division", &found, &expected.collect::<Vec<_>>());
    });
}
