"""Gender and age from a few seconds of voice: the tested module that every notebook imports."""
