//! Asks the person at the terminal before something is removed for good.

use std::io::{BufRead as _, IsTerminal as _, Write as _};

use super::exit::CliError;

/// Asks `question`, and returns whether the answer is yes. Where there is no terminal, a script has called this command, and is not asked.
///
/// # Errors
/// The terminal cannot be read or written.
pub(super) fn is_confirmed(question: &str) -> Result<bool, CliError> {
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        return Ok(true);
    }
    let mut stderr = std::io::stderr();
    let asked = write!(stderr, "{question} [y/N] ");
    asked
        .and_then(|()| stderr.flush())
        .map_err(CliError::failed)?;
    let mut answer = String::new();
    std::io::stdin()
        .lock()
        .read_line(&mut answer)
        .map_err(CliError::failed)?;
    Ok(is_yes(&answer))
}

fn is_yes(answer: &str) -> bool {
    matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_but_a_clear_yes_removes_anything() {
        assert!(is_yes("y\n") && is_yes("YES\n"));
        for other in ["", "\n", "n\n", "yess\n", "web-1\n"] {
            assert!(!is_yes(other), "{other:?}");
        }
    }
}
