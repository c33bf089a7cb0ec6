//! A module: its kernels, decoded, and its variables.

use super::{Builder, Program, Refusal};
use crate::exec::call::function_address;
use crate::text::{self, Extent, Initialiser, Space, Statement, SyntaxError, Variable, line_and_column};

/// Why a file cannot be loaded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// The text does not follow the grammar.
    #[error(transparent)]
    Syntax(#[from] SyntaxError),
    /// The text means something that the emulator does not do.
    #[error("{file}:{line}:{column}: {why}: `{text}`")]
    Refused {
        /// The file's name.
        file: String,
        /// From 1.
        line: u32,
        /// From 1.
        column: u32,
        /// The instruction or name.
        text: String,
        /// What is the matter with it.
        why: Refusal,
    },
}

impl LoadError {
    pub(crate) fn refused(file: &str, source: &str, extent: Extent, why: Refusal) -> Self {
        let (line, column) = line_and_column(source, extent.at);
        let text = source[extent.at as usize..extent.end as usize].to_owned();
        Self::Refused { file: file.to_owned(), line, column, text, why }
    }
}

/// A parsed and decoded file, for any number of machines.
#[derive(Debug, Clone)]
pub struct Module {
    pub(crate) file: String,
    pub(crate) source: String,
    pub(crate) kernels: Vec<Kernel>,
    pub(crate) variables: Vec<DeviceVariable>,
}

/// An entry of a module.
#[derive(Debug, Clone)]
pub struct Kernel {
    pub(crate) name: String,
    pub(crate) program: Program,
    pub(crate) param_bytes: u32,
    pub(crate) max_threads: Option<[u32; 3]>,
    pub(crate) required_threads: Option<[u32; 3]>,
    pub(crate) min_blocks: Option<u32>,
}

impl Kernel {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Bytes of its parameters.
    pub fn param_bytes(&self) -> u32 {
        self.param_bytes
    }

    /// Bytes of its static shared memory.
    pub fn static_shared_bytes(&self) -> u32 {
        self.program.shared_bytes
    }

    /// Instructions, with those of the functions that it calls.
    pub fn instructions(&self) -> usize {
        self.program.code.len()
    }

    /// `.maxntid`: the most threads per block in x, y and z.
    pub fn max_threads(&self) -> Option<[u32; 3]> {
        self.max_threads
    }

    /// Bytes of local memory of a thread, outside of the functions that it calls.
    pub fn local_bytes(&self) -> u32 {
        self.program.functions.first().map_or(0, |entry| entry.local_bytes)
    }

    /// `.minnctapersm`: blocks that a multiprocessor shall hold at once.
    pub fn min_blocks(&self) -> Option<u32> {
        self.min_blocks
    }

    /// `.reqntid`: the only block size that may be launched.
    pub fn required_threads(&self) -> Option<[u32; 3]> {
        self.required_threads
    }
}

/// A `.global` or `.const` variable.
#[derive(Debug, Clone)]
pub(crate) struct DeviceVariable {
    pub(crate) name: String,
    pub(crate) bytes: u64,
    /// Its first bytes.
    pub(crate) image: Vec<u8>,
    /// Addresses of other variables to add at byte offsets of the image.
    pub(crate) addresses: Vec<(usize, u32)>,
}

impl Module {
    /// Parses and decodes a file of PTX; `file` is its name in errors and reports.
    ///
    /// # Errors
    /// [`LoadError`] names the first place that is not PTX or that the emulator does not execute.
    pub fn new(file: &str, source: &str) -> Result<Self, LoadError> {
        let tree = text::parse(file, source)?;
        let tree = with_function_variables(tree);
        let mut kernels = Vec::new();
        for function in tree.functions.iter().filter(|function| function.entry) {
            if let Some(extent) = function.cluster {
                return Err(LoadError::refused(
                    file,
                    source,
                    extent,
                    Refusal::Cluster("launch bounds of clusters"),
                ));
            }
            let program = Builder::build(file, source, &tree, function)?;
            kernels.push(Kernel {
                name: function.name.to_owned(),
                param_bytes: program.functions[0].params.last().map_or(0, |(offset, bytes)| offset + bytes),
                program,
                max_threads: function.max_threads,
                required_threads: function.required_threads,
                min_blocks: function.min_blocks,
            });
        }
        let variables = tree.variables.iter().map(|variable| device_variable(file, source, &tree, variable));
        let variables = variables.collect::<Result<_, _>>()?;
        Ok(Self { file: file.to_owned(), source: source.to_owned(), kernels, variables })
    }

    /// Its kernels, in the file's order.
    pub fn kernels(&self) -> &[Kernel] {
        &self.kernels
    }

    /// Line and text of an instruction.
    pub(crate) fn line(&self, extent: Extent) -> (u32, &str) {
        let (line, _) = line_and_column(&self.source, extent.at);
        (line, self.source[extent.at as usize..extent.end as usize].trim())
    }
}

/// Lists `.global` and `.const` variables of functions behind those of the file.
fn with_function_variables(mut tree: text::Module<'_>) -> text::Module<'_> {
    // A declaration of what the file defines as well.
    let defined: Vec<&str> = tree.variables.iter().filter(|it| !it.external).map(|it| it.name).collect();
    tree.variables.retain(|it| !it.external || !defined.contains(&it.name));
    for function in &tree.functions {
        for statement in &function.body {
            if let Statement::Variable(variable) = statement
                && matches!(variable.space, Space::Global | Space::Const)
            {
                tree.variables.push(variable.clone());
            }
        }
    }
    tree
}

/// The number of a variable in its module.
pub(crate) fn variable_index(module: &text::Module<'_>, variable: &Variable<'_>) -> Option<u32> {
    module.variables.iter().position(|found| found.extent == variable.extent).map(|index| index as u32)
}

/// The number of a function in its module.
pub(crate) fn function_number(module: &text::Module<'_>, name: &str) -> Option<u32> {
    module.functions.iter().position(|found| found.name == name).map(|index| index as u32)
}

fn device_variable(
    file: &str,
    source: &str,
    module: &text::Module<'_>,
    variable: &Variable<'_>,
) -> Result<DeviceVariable, LoadError> {
    let refuse = |why| Err(LoadError::refused(file, source, variable.extent, why));
    let width = (variable.ty.bytes() as usize).max(1);
    let in_memory = matches!(variable.space, Space::Global | Space::Const);
    if variable.external && in_memory {
        return refuse(Refusal::External);
    }
    let mut image = Vec::new();
    let mut addresses = Vec::new();
    for element in &variable.initialiser {
        let bits = match element {
            Initialiser::Bits(bits) => *bits,
            Initialiser::Address { symbol, offset } => {
                if width < 8 {
                    return refuse(Refusal::NarrowAddress(width));
                }
                match module.variables.iter().position(|found| found.name == *symbol) {
                    Some(index) => {
                        addresses.push((image.len(), index as u32));
                        *offset as u64
                    }
                    None => match function_number(module, symbol) {
                        Some(number) => function_address(number).wrapping_add(*offset as u64),
                        None => return refuse(Refusal::Initialiser((*symbol).to_owned())),
                    },
                }
            }
        };
        image.extend_from_slice(&bits.to_le_bytes()[..width.min(8)]);
    }
    if image.len() as u64 > variable.bytes {
        return refuse(Refusal::InitialiserSize { found: image.len(), bytes: variable.bytes });
    }
    // Global and constant variables without an initialiser are zero.
    image.resize(if in_memory { variable.bytes as usize } else { 0 }, 0);
    Ok(DeviceVariable { name: variable.name.to_owned(), bytes: image.len() as u64, image, addresses })
}
