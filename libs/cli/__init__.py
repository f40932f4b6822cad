"""`almoner`, the command line: submit, watch, explain, retry, prove. It reads published views and sends events."""
