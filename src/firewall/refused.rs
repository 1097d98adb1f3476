//! Why the kernel, or a program that changes it, did not do something.

/// A refusal of the kernel or of a program.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    #[error("the program {0} is not installed")]
    NoProgram(&'static str),
    #[error("{0}: not permitted")]
    NoRights(&'static str),
    /// The program or the step, and the message of the program or the kernel.
    #[error("{0}: {1}")]
    Said(&'static str, String),
}
