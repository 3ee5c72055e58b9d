//! A table that becomes a list of cards on a narrow screen.
//!
//! Each element has an explicit ARIA role, because a browser does not treat an element as a table if its style is a block.

use maud::{Markup, html};

/// Returns a table. The first cell of each row is its header. `empty` stands for a table without rows.
pub(super) fn table(caption: &str, columns: &[&str], rows: Vec<Vec<Markup>>, empty: &str) -> Markup {
    if rows.is_empty() {
        return html! { p.muted { (empty) } };
    }
    html! {
        table role="table" {
            caption.hidden { (caption) }
            thead role="rowgroup" {
                tr role="row" { @for column in columns { th scope="col" role="columnheader" { (column) } } }
            }
            tbody role="rowgroup" {
                @for row in rows {
                    tr role="row" {
                        @for (index, cell) in row.into_iter().enumerate() {
                            @let column = columns.get(index).copied().unwrap_or_default();
                            @if index == 0 {
                                th scope="row" role="rowheader" { (cell) }
                            } @else {
                                td role="cell" data-label=(column) { div { (cell) } }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Returns pairs of names and values.
pub(super) fn facts(pairs: Vec<(&str, Markup)>) -> Markup {
    html! { dl.facts { @for (name, value) in pairs { div { dt { (name) } dd { (value) } } } } }
}
