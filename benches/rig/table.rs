//! Figures in columns.

/// Prints `rows` below `head`: the first column to the left, the others to the right.
pub(crate) fn print_table(head: &[&str], rows: &[Vec<String>]) {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells
            .map(|cell| cell.chars().count())
            .chain(head.get(column).map(|cell| cell.chars().count()))
            .max()
            .unwrap_or(0)
    };
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut text = String::new();
        for (column, cell) in cells.enumerate() {
            let wide = width(column);
            text += &match column {
                0 => format!("{cell:<wide$}"),
                _ => format!("  {cell:>wide$}"),
            };
        }
        println!("{}", text.trim_end());
    };
    line(&mut head.iter().copied());
    for row in rows {
        line(&mut row.iter().map(String::as_str));
    }
}
