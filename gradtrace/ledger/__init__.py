"""The ledger on disk: format, writer, reader. numpy and zarr only."""
