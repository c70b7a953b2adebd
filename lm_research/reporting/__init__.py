"""Reports of runs and studies: one self-contained HTML file with tables, charts and a scaling law."""
