"""The course as pages: a lesson is one HTML file that opens without Python, and its panels move."""
