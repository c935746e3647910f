"""What the doctor looks at: each module takes facts and gives findings, and asks nobody."""
