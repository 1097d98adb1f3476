//! The error of a request to the kernel, or of a program that configures the kernel.

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum KernelError {
    #[error("the program {0} is not installed")]
    NotInstalled(&'static str),
    #[error("{0}: not permitted")]
    NotPermitted(&'static str),
    /// The program or step that failed, and the message of the program or the kernel.
    #[error("{0}: {1}")]
    Failed(&'static str, String),
}
