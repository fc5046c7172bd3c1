"""What `scout` on the command line and `import scout` both call."""
