//! A machine with one device and one stream, and typed buffers on it.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::sync::Arc;

use ptx_emulator::memory::{DeviceId, Owner, Thread};
use ptx_emulator::{Launch, Machine, MachineOptions, Module, ModuleId, RunError, StreamId};

pub struct Rig {
    pub machine: Machine,
    pub module: ModuleId,
    pub stream: StreamId,
}

pub fn shipped(name: &str) -> Module {
    let path = format!("{}/../ptx/{name}", env!("CARGO_MANIFEST_DIR"));
    let source = std::fs::read_to_string(&path).unwrap();
    Module::new(name, &source).unwrap_or_else(|error| panic!("{error}"))
}

impl Rig {
    pub fn new(module: &Arc<Module>, options: MachineOptions) -> Self {
        let mut machine = Machine::new(options);
        let loaded = machine.load(DeviceId(0), module).unwrap();
        let stream = machine.stream(DeviceId(0));
        Self { machine, module: loaded, stream }
    }

    /// One kernel or more from text.
    pub fn of(source: &str, options: MachineOptions) -> Self {
        let text = format!(".version 8.0\n.target sm_90\n.address_size 64\n{source}");
        let module = Module::new("test.ptx", &text).unwrap_or_else(|error| panic!("{error}"));
        Self::new(&Arc::new(module), options)
    }

    pub fn empty(&mut self, bytes: u64, name: &str) -> u64 {
        self.machine.memory().allocate(Owner::Device(DeviceId(0)), bytes, name).unwrap()
    }

    pub fn upload(&mut self, bytes: &[u8], name: &str) -> u64 {
        let address = self.empty(bytes.len() as u64, name);
        self.machine.memory().write(Thread::HOST, address, bytes).unwrap();
        address
    }

    pub fn download(&mut self, address: u64, bytes: usize) -> Vec<u8> {
        let mut out = vec![0; bytes];
        self.machine.memory().read(Thread::HOST, address, &mut out).unwrap_or_else(|fault| panic!("{fault}"));
        out
    }

    pub fn words(&mut self, address: u64, count: usize) -> Vec<u32> {
        self.download(address, 4 * count)
            .chunks(4)
            .map(|word| u32::from_le_bytes(word.try_into().unwrap()))
            .collect()
    }

    pub fn run(
        &mut self,
        kernel: &str,
        grid: [u32; 3],
        block: [u32; 3],
        shared: u32,
        params: &[u8],
    ) -> Result<(), RunError> {
        let kernel = self.machine.kernel(self.module, kernel).unwrap();
        let launch =
            Launch { dynamic_shared_bytes: shared, ..Launch::new(kernel, grid, block, params.to_vec()) };
        self.machine.launch(self.stream, &launch).unwrap_or_else(|error| panic!("{error}"));
        self.machine.run()
    }
}

/// The producer on one device, the consumer on `consumer`; data, flag and result lie with the consumer.
pub fn hand_over(consumer: u32, module: &Arc<Module>, options: MachineOptions) -> Result<u32, RunError> {
    let mut machine = Machine::new(options);
    machine.memory().enable_peer(DeviceId(0), DeviceId(1));
    let home = DeviceId(consumer);
    let addresses = ["data", "flag", "out"].map(|name| {
        let address = machine.memory().allocate(Owner::Device(home), 256, name).unwrap();
        machine.memory().write(Thread::HOST, address, &[0; 256]).unwrap();
        address
    });
    for (device, kernel) in [(DeviceId(0), "produce"), (home, "consume")] {
        let loaded = machine.load(device, module).unwrap();
        let stream = machine.stream(device);
        let launch = Launch::new(
            machine.kernel(loaded, kernel).unwrap(),
            [1, 1, 1],
            [1, 1, 1],
            params(&addresses, &[]),
        );
        machine.launch(stream, &launch).unwrap();
    }
    machine.run()?;
    let mut word = [0; 4];
    machine.memory().read(Thread::HOST, addresses[2], &mut word).unwrap();
    Ok(u32::from_le_bytes(word))
}

/// Parameters one after the other.
pub fn params(addresses: &[u64], words: &[u32]) -> Vec<u8> {
    let addresses = addresses.iter().flat_map(|address| address.to_le_bytes());
    addresses.chain(words.iter().flat_map(|word| word.to_le_bytes())).collect()
}
