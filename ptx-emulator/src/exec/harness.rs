//! One instruction on values, for the tests of families.

use crate::machine::{Launch, Machine, MachineOptions};
use crate::memory::{DeviceId, Owner, Thread};
use crate::program::Module;

/// The type of operand `index` of an instruction: the destination is 0.
fn operand_type(opcode: &str, index: usize) -> &str {
    let last = opcode
        .rsplit('.')
        .find(|part| part.starts_with(['b', 'u', 's', 'f']) && part[1..].parse::<u32>().is_ok());
    let ty = last.unwrap_or("b32");
    let bits = &ty[1..];
    let amount = opcode.starts_with("sh") || opcode.starts_with("bfe");
    match (opcode.split('.').next().unwrap_or(opcode), index) {
        ("mul" | "mad", 0 | 3) if opcode.contains(".wide") => {
            if bits == "16" {
                "b32"
            } else {
                "b64"
            }
        }
        ("popc" | "clz" | "bfind", 0) => "b32",
        ("bfi", 3 | 4) => "b32",
        (_, 2 | 3) if amount => "b32",
        _ => match bits {
            "16" => "b16",
            "64" => "b64",
            _ => "b32",
        },
    }
}

/// Executes `opcode` (perhaps followed by a literal operand) on registers with these bits; the result's bits.
pub(crate) fn evaluate(instruction: &str, sources: &[u64]) -> u64 {
    let (opcode, literal) =
        instruction.split_once(' ').map_or((instruction, ""), |(opcode, rest)| (opcode, rest));
    let needed = match opcode.split('.').next().unwrap_or_default() {
        "not" | "cnot" | "popc" | "clz" | "brev" | "bfind" | "neg" | "abs" => 1,
        "mad" | "sad" | "dp4a" | "mad24" | "shf" | "bfe" | "prmt" | "lop3" | "fns" | "fma" => 3,
        "bfi" => 4,
        _ => 2,
    };
    let mut body = format!(".reg .{} %d; .reg .b64 %out; .reg .b64 %w;", operand_type(opcode, 0));
    let mut operands = String::new();
    for (index, bits) in sources.iter().take(needed).enumerate() {
        let ty = operand_type(opcode, index + 1);
        body += &format!(".reg .{ty} %s{index}; mov.{ty} %s{index}, {bits};");
        operands += &format!(", %s{index}");
    }
    if !literal.is_empty() {
        operands += &format!(", {literal}");
    }
    let width = &operand_type(opcode, 0)[1..];
    let widen =
        if width == "64" { "mov.b64 %w, %d;".to_owned() } else { format!("cvt.u64.u{width} %w, %d;") };
    let text = format!(
        ".version 8.0\n.target sm_90\n.address_size 64\n.visible .entry k(.param .u64 out) {{ {body} {opcode} %d{operands};
        ld.param.u64 %out, [out]; {widen} st.global.u64 [%out], %w; ret; }}"
    );
    let module = Module::new("harness.ptx", &text).unwrap_or_else(|error| panic!("{error}"));
    let mut machine = Machine::new(MachineOptions::default());
    let loaded = machine.load(DeviceId(0), &std::sync::Arc::new(module)).unwrap();
    let out = machine.memory().allocate(Owner::Device(DeviceId(0)), 8, "out").unwrap();
    let kernel = machine.kernel(loaded, "k").unwrap();
    let params = out.to_le_bytes().to_vec();
    let stream = machine.stream(DeviceId(0));
    let (grid, block) = ([1; 3], [1; 3]);
    let launch = Launch::new(kernel, grid, block, params);
    machine.launch(stream, &launch).unwrap();
    machine.run().unwrap_or_else(|error| panic!("{error}"));
    let mut bytes = [0; 8];
    machine.memory().read(Thread::HOST, out, &mut bytes).unwrap();
    u64::from_le_bytes(bytes)
}
