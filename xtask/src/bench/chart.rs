//! Charts of bars as SVG, readable on light and on dark pages. Pure.

use std::fmt::Write as _;

/// One bar of a chart.
pub struct Bar {
    pub label: String,
    pub value: f64,
    pub kind: BarKind,
}

/// Look of a bar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BarKind {
    /// Bar that stands out.
    Ours,
    Other,
    /// Outline of a limit of the machine, which no tool can beat.
    Limit,
}

const WIDTH: u32 = 720;
const LABELS: u32 = 160;
const ROW: u32 = 26;
const TOP: u32 = 40;

/// Draws a chart of horizontal bars; shorter is better.
pub fn bars(title: &str, unit: &str, bars: &[Bar]) -> String {
    let height = TOP + bars.iter().map(|_| ROW).sum::<u32>() + 10;
    let most = bars.iter().map(|bar| bar.value).fold(f64::MIN_POSITIVE, f64::max);
    // Greys in the middle are readable on white and on black.
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"13\" fill=\"#808080\">\n<title>{0}</title>\n\
         <text x=\"0\" y=\"18\" font-size=\"15\" font-weight=\"bold\">{0}, {1}</text>\n",
        escaped(title),
        escaped(unit)
    );
    for (row, bar) in (0..).zip(bars) {
        let y = TOP + row * ROW;
        let length = (f64::from(WIDTH - LABELS - 80) * bar.value / most).max(1.0);
        let look = match bar.kind {
            BarKind::Ours => "fill=\"#2da44e\"",
            BarKind::Other => "fill=\"#8c959f\"",
            BarKind::Limit => "fill=\"none\" stroke=\"#808080\" stroke-dasharray=\"3 3\"",
        };
        let _ = writeln!(
            out,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>\
             <rect x=\"{LABELS}\" y=\"{y}\" width=\"{length:.1}\" height=\"{}\" rx=\"2\" {look}/>\
             <text x=\"{:.1}\" y=\"{}\">{:.1}</text>",
            LABELS - 8,
            y + 15,
            escaped(&bar.label),
            ROW - 6,
            f64::from(LABELS) + length + 6.0,
            y + 15,
            bar.value
        );
    }
    out + "</svg>\n"
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::{Bar, BarKind, bars};

    #[test]
    fn the_longest_bar_fills_the_chart_and_text_is_escaped() {
        let of = |label: &str, value, kind| Bar { label: label.into(), value, kind };
        let chart = bars("a < b", "s", &[of("reflash", 1.0, BarKind::Ours), of("curl|zstd|dd", 2.0, BarKind::Other)]);
        assert!(chart.contains("width=\"480.0\"") && chart.contains("width=\"240.0\""));
        assert!(chart.contains("a &lt; b, s") && chart.starts_with("<svg ") && chart.ends_with("</svg>\n"));
        // Every element is closed, every attribute quoted, and nothing else stands in angle brackets.
        for (opened, closed) in [("<text", "</text>"), ("<rect", "/>"), ("<svg", "</svg>"), ("<title", "</title>")] {
            assert_eq!(chart.matches(opened).count(), chart.matches(closed).count(), "{opened}");
        }
        assert_eq!(chart.matches('<').count(), chart.matches('>').count());
        assert_eq!(chart.matches('"').count(), 2 * chart.matches("=\"").count());
    }
}
