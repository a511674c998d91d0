"""What commands print: tables and summaries as text for people, or the same facts as JSON for programs."""
