//! The numbers on the command line of a bench.

/// Returns the numbers in the order of the command line, and the defaults for those that are not given. Words that are no numbers, such
/// as the `--bench` of cargo, are left out.
pub(crate) fn numbers<const N: usize>(defaults: [usize; N]) -> [usize; N] {
    let words = std::env::args().skip(1);
    let mut given = words.filter_map(|word| word.parse::<usize>().ok());
    defaults.map(|default| given.next().unwrap_or(default))
}
