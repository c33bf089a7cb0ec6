//! Embeds the PTX that the build script made; load it with `cuModuleLoadData`, cust or cudarc.

const PTX: &str = include_str!(concat!(env!("OUT_DIR"), "/vecadd.ptx"));

fn main() {
    let kernels: Vec<&str> = PTX
        .lines()
        .filter_map(|line| line.strip_prefix(".visible .entry "))
        .filter_map(|rest| rest.split('(').next())
        .collect();
    let kib = PTX.len() as f64 / 1024.0;
    println!("vecadd: {} kernel in {kib:.1} KiB of PTX: {}", kernels.len(), kernels.join(", "));
}
