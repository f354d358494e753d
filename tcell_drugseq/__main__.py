"""`python -m tcell_drugseq` is `tcell-drugseq`."""

from tcell_drugseq.cli import main

main()
